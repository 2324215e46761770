"""Models with reference latents: what training drops and noises, and weights of models without references."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import IDENTITY, randomise, unet

from ldm.checkpoint import write_weights
from ldm.models.diffusion.condition import Hybrid
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion
from rdm.models.references import References, noised, sampled

REFERENCE_UNET = unet(context_dim=6) | {"target": "rdm.modules.diffusionmodules.references.ReferenceUNetModel"}


def make(references: Any = True, network: Any = REFERENCE_UNET, **options: Any) -> RetrievalAugmentedDiffusion:
    torch.manual_seed(0)
    return RetrievalAugmentedDiffusion(
        conditioner={"k": 2}, unet_config=network, first_stage_config=IDENTITY, timesteps=20, references=references,
        **options,
    )  # fmt: skip


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(n: int = 2) -> dict[str, torch.Tensor]:
    return {"image": draw(n, 3, 4, 4), "neighbours": draw(n, 4, 6, seed=1), "references": draw(n, 4, 3, 4, 4, seed=2)}


def test_the_context_holds_the_scaled_references_of_the_first_k_neighbours() -> None:
    model, given = make(scale_factor=0.5), batch()
    context = model.context(given)
    assert torch.equal(context.tokens, given["neighbours"][:, :2])
    assert torch.equal(context.image[:, :6], 0.5 * given["references"][:, :2].flatten(1, 2))
    assert torch.equal(context.image[:, 6:], torch.zeros(2, 1, 4, 4))
    null = model.null_context(context)
    assert not null.tokens.any() and not null.image.any()
    for wrong, got in (({}, "none"), ({"references": draw(2, 1, 3, 4, 4)}, r"\(2, 1, 3, 4, 4\)")):
        with pytest.raises(ValueError, match=rf"references: got {got}.*data\.params\.references"):
            model.context({"neighbours": given["neighbours"], **wrong})


@pytest.mark.parametrize("options", [{"p_drop": 0.3}, {"p_single": 0.4}, {"p_noise": 0.6}])
def test_references_are_dropped_and_noised_at_the_given_rates(options: dict[str, float]) -> None:
    n, never = 4000, {"p_drop": 0.0, "p_single": 0.0, "p_noise": 0.0}
    channels = References(**{**never, **options}).trained(torch.ones(n, 2, 3, 2, 2), torch.Generator().manual_seed(0))
    (name, p), latents, strength = *options.items(), channels[:, :6].unflatten(1, (2, 3)), channels[:, 6, 0, 0]
    absent = (latents == 0).all(4).all(3).all(2).float()
    seen = {
        "p_drop": (absent.min(1).values.mean(), absent.max(1).values.mean()),  # both of an image, or none
        "p_single": (absent[:, 0].mean(), absent[:, 1].mean()),
        "p_noise": ((strength > 0).float().mean(), (latents != 1).flatten(1).any(1).float().mean()),
    }[name]
    for share in seen:
        assert share.item() == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)
    if name != "p_noise":
        assert not strength.any() and set(latents.unique().tolist()) == {0.0, 1.0}
    else:
        assert strength[strength > 0].mean().item() == pytest.approx(0.5, abs=0.03) and strength.max() <= 1


def test_noise_keeps_the_variance_and_its_seed_decides_it() -> None:
    latents = draw(64, 2, 3, 8, 8)
    for strength in (0.0, 0.3, 1.0):
        made = noised(latents, torch.full((64,), strength), draw(*latents.shape, seed=1))
        assert made.var().item() == pytest.approx(1.0, abs=0.03)
    few = latents[:2]
    assert torch.equal(sampled(few, 0.0, None)[:, :6], few.flatten(1, 2))
    one, other = sampled(few, 0.5, [3, 4]), sampled(few[1:], 0.5, [4])
    assert torch.equal(one[1:], other) and not torch.equal(sampled(few, 0.5, [5, 4])[0], one[0])
    assert not sampled(few, 1.0, [3, 4])[:, :6].sub(few.flatten(1, 2)).abs().max() < 0.1
    for wrong in ((1.5, [0, 1]), (0.5, None), (0.5, [1])):
        with pytest.raises(ValueError, match="references: got strength"):
            sampled(few, *wrong)


def test_a_training_step_is_repeated_by_its_seed_and_depends_on_references() -> None:
    model = make(p_uncond=0.0)
    randomise(model.model)
    given, other = batch(), batch() | {"references": draw(2, 4, 3, 4, 4, seed=9)}
    losses = [model.training_step(each, 0).item() for each in (given, given, other)]
    assert losses[0] == losses[1] != losses[2]
    assert make(use_neighbours=False).context(given).image.abs().max() == 0
    model.validation_step(given, 0)


def test_references_leave_with_the_null_context_and_alone() -> None:
    model = make(references={"p_drop": 0.5, "p_single": 0.0}, p_uncond=0.3)
    context = Hybrid(torch.ones(4000, 7, 2, 2), torch.ones(4000, 2, 6))
    dropped = model.drop_context(context, torch.Generator().manual_seed(0))
    tokens, references = dropped.tokens.mean((1, 2)) > 0, dropped.image[:, :6].abs().amax((1, 2, 3)) > 0
    assert not (references & ~tokens).any()  # without the tokens there are no references
    assert tokens.float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert references.float().mean().item() == pytest.approx(0.35, abs=0.03)


@pytest.mark.parametrize("only_unet", [True, False])
def test_weights_of_a_model_without_references_make_the_same_at_first(only_unet: bool, tmp_path: Path) -> None:
    plain = make(None, unet(context_dim=6), use_ema=False)
    randomise(plain.model)
    write_weights(tmp_path / "plain.safetensors", plain.state_dict())
    model = make(ckpt_path=str(tmp_path / "plain.safetensors"), load_only_unet=only_unet)
    x, t, context = draw(2, 3, 4, 4), torch.tensor([3, 9]), model.context(batch())
    torch.testing.assert_close(model.predict_eps(x, t, context), plain.predict_eps(x, t, context.tokens))
    assert model.latent_shape_of(8, 8, (8, 8)) == (3, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(model.model.parameters(), _averaged(model), strict=True))
    again = tmp_path / "again.safetensors"
    write_weights(again, {name: v for name, v in model.state_dict().items() if not name.startswith("model_ema")})
    torch.testing.assert_close(make(ckpt_path=str(again)).predict_eps(x, t, context), model.predict_eps(x, t, context))
    with pytest.raises(ValueError, match="again"):  # the other way round there is no place for references
        make(None, unet(context_dim=6), ckpt_path=str(again))


def _averaged(model: RetrievalAugmentedDiffusion) -> list[torch.Tensor]:
    with model.ema_scope():
        return [parameter.clone() for parameter in model.model.parameters()]


def test_plain_stacking_is_the_plain_unet() -> None:
    stacked = unet(context_dim=6)
    stacked = {**stacked, "params": {**stacked["params"], "in_channels": 3 + 2 * 3 + 1}}
    model = make(network=stacked)
    assert model.latent_channels == 3
    randomise(model.model)
    given = batch()
    assert model.training_step(given, 0).isfinite()
    assert model.sample(model.context(given), (3, 4, 4), [0, 1], steps=2).shape == (2, 3, 4, 4)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"references\.p_single: got 1\.5"):
        make({"p_single": 1.5})
    with pytest.raises(ValueError, match="references.*'p_sngle'.*p_single"):
        make({"p_sngle": 0.5})
    with pytest.raises(ValueError, match="conditioning_key: got 'crossattn' with references"):
        make(conditioning_key="crossattn")
    with pytest.raises(ValueError, match="conditioning_key: got 'hybrid' with references=None"):
        make(None, conditioning_key="hybrid")
    assert make(False, unet(context_dim=6)).references is None
