"""The U-Net with reference latents: references are a set of any size, and zeros are absent."""

from typing import Any

import pytest
import torch
from small_models import randomise

from rdm.modules.diffusionmodules.references import ReferenceEncoder, ReferenceUNetModel


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(**options: Any) -> ReferenceUNetModel:
    model = ReferenceUNetModel(
        image_size=4, in_channels=3, out_channels=3, model_channels=32, num_res_blocks=1, attention_resolutions=[1],
        channel_mult=[1], num_head_channels=16, use_spatial_transformer=True, context_dim=6, **options,
    )  # fmt: skip
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("width", [0, 8])
def test_references_are_a_set_of_any_size_and_zeros_are_absent(width: int) -> None:
    encoder, references = ReferenceEncoder(3, width), draw(2, 4, 3, 8, 8)
    folded = encoder(references)
    assert folded.shape == (2, encoder.out_channels, 8, 8) and encoder.out_channels == 6 + width
    torch.testing.assert_close(encoder(references.flip(1)), folded)
    absent = torch.cat([references[:, :2], torch.zeros(2, 3, 3, 8, 8)], dim=1)
    torch.testing.assert_close(encoder(absent), encoder(references[:, :2]))
    assert not torch.allclose(encoder(references[:, :2]), folded)
    assert torch.equal(encoder(torch.zeros(2, 4, 3, 8, 8)), torch.zeros_like(folded))


def test_mean_and_deviation_are_those_of_the_references() -> None:
    references = draw(2, 4, 3, 8, 8)
    folded = ReferenceEncoder(3, 0)(references)
    torch.testing.assert_close(folded[:, :3], references.mean(1))
    torch.testing.assert_close(folded[:, 3:], references.std(1, correction=0), atol=2e-3, rtol=1e-3)
    alone = references[:, :1].requires_grad_()
    ReferenceEncoder(3, 0)(alone).sum().backward()
    assert alone.grad is not None and alone.grad.isfinite().all()  # the deviation of one is 0


@pytest.mark.parametrize("k", [1, 3])
def test_the_prediction_depends_on_references_and_strength(k: int) -> None:
    model, x, context, t = network(), draw(2, 3, 4, 4), draw(2, 2, 6, seed=1), torch.tensor([3, 900])
    references, strength = draw(2, 3 * k, 4, 4, seed=2), torch.zeros(2, 1, 4, 4)
    plain = model(torch.cat([x, references, strength], 1), t, context)
    assert plain.shape == (2, 3, 4, 4)
    for other in (torch.cat([x, 2 * references, strength], 1), torch.cat([x, references, strength + 0.5], 1)):
        assert not torch.allclose(model(other, t, context), plain, atol=1e-3)


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"\[2, {channels}, 4, 4\].*3 \+ K \* 3 \+ 1"):
        network()(draw(2, channels, 4, 4), torch.tensor([3, 900]), draw(2, 2, 6))
