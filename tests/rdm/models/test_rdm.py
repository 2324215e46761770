"""Retrieval-augmented diffusion: the context, its null, and what depends on neighbours."""

from pathlib import Path

import pytest
import torch
from small_models import IDENTITY, randomise, unet

from ldm.checkpoint import write_weights
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion


def make(**options: object) -> RetrievalAugmentedDiffusion:
    torch.manual_seed(0)
    fixed: dict = {
        "unet_config": unet(context_dim=6),
        "first_stage_config": IDENTITY,
        "timesteps": 20,
    }
    return RetrievalAugmentedDiffusion(conditioner={"k": 2}, **fixed, **options)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_context_is_the_first_k_neighbours() -> None:
    model = make()
    neighbours = draw(3, 5, 6)
    assert torch.equal(model.context({"neighbours": neighbours}), neighbours[:, :2])
    assert torch.equal(model.null_context(neighbours), torch.zeros(3, 5, 6))
    with pytest.raises(ValueError, match=r"neighbours.*\(3, 1, 6\).*\[B, 2, D\].*data.params.k"):
        model.context({"neighbours": neighbours[:, :1]})
    with pytest.raises(ValueError, match="neighbours: got none"):
        model.context({"image": neighbours})


@pytest.mark.parametrize("p_uncond", [0.0, 0.1, 0.7])
def test_the_null_replaces_whole_contexts_at_the_given_rate(p_uncond: float) -> None:
    context = torch.ones(4000, 2, 6)
    dropped = make(p_uncond=p_uncond).drop_context(context, torch.Generator().manual_seed(0))
    kept = dropped.mean((1, 2))
    assert set(kept.tolist()) <= {0.0, 1.0}
    assert 1 - kept.mean().item() == pytest.approx(p_uncond, abs=4 * (p_uncond / 4000) ** 0.5)


@pytest.mark.parametrize("use_neighbours", [True, False])
def test_only_with_neighbours_does_the_loss_depend_on_them(use_neighbours: bool) -> None:
    model = make(use_neighbours=use_neighbours, p_uncond=0.0)
    randomise(model.model)
    losses = [
        model.training_step({"image": draw(2, 3, 4, 4), "neighbours": draw(2, 4, 6, seed=seed)}, 0).item()
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == use_neighbours


def test_an_image_depends_on_its_own_neighbours_alone() -> None:
    model = make()
    randomise(model.model)
    context = draw(3, 2, 6)
    options: dict = {"steps": 4, "scale": 2.0, "null": torch.zeros(1, 1, 1)}
    together = model.sample(context, (3, 4, 4), [0, 1, 2], **options)
    alone = model.sample(context[1:2], (3, 4, 4), [1], **options)
    assert torch.allclose(together[1:2], alone, atol=1e-4 * float(alone.abs().max()))
    other = model.sample(context[2:3], (3, 4, 4), [1], **options)
    assert not torch.allclose(alone, other, atol=1e-2 * float(alone.abs().max()))
    swapped = model.sample(context[1:2].flip(1), (3, 4, 4), [1], **options)  # neighbours are a set
    assert torch.allclose(alone, swapped, atol=1e-4 * float(alone.abs().max()))


def test_guidance_one_ignores_the_null_and_zero_the_context() -> None:
    model = make()
    randomise(model.model)
    x, t, context, null = draw(2, 3, 4, 4), torch.tensor([3, 9]), draw(2, 2, 6), torch.zeros(2, 2, 6)
    with torch.no_grad():
        eps, nothing = model.model(x, t, context), model.model(x, t, null)
        got = {scale: model.denoiser(context, null, scale)(x, t) for scale in (0.0, 1.0, 3.0)}
    assert torch.allclose(got[1.0], eps, atol=1e-5) and torch.allclose(got[0.0], nothing, atol=1e-5)
    assert torch.allclose(got[3.0], nothing + 3 * (eps - nothing), atol=1e-3)


def test_names_add_nothing_and_the_released_null_is_accepted(tmp_path: Path) -> None:
    model = make()
    randomise(model.model)
    state = model.state_dict()
    assert {name.split(".")[0] for name in state if "." in name} == {"model", "model_ema"}
    assert len([name for name in state if "." not in name]) == 12
    write_weights(file := tmp_path / "m.safetensors", state | {"unconditional_guidance_vex": torch.zeros(6)})
    loaded = make(ckpt_path=str(file)).state_dict()
    assert [name for name in state if not torch.equal(loaded[name], state[name])] == []


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"p_uncond.*1.0"):
        make(p_uncond=1.0)
    with pytest.raises(ValueError, match="LatentDiffusion.*'ema_dcay'.*'ema_decay'"):
        make(ema_dcay=0.9)
    with pytest.raises(ValueError, match="conditioner.*'kk'"):
        RetrievalAugmentedDiffusion({"kk": 3}, unet_config=unet(6), first_stage_config=IDENTITY)
