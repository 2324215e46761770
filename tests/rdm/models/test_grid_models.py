"""Models with grids of tokens: their context, their weights, and weights of models of pooled vectors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import IDENTITY, VQ, randomise, unet

from ldm.checkpoint import write_weights
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion

GRID = {"k": 2, "tokens": "grid", "grid": 2, "token_width": 5}
POOLED = {"k": 2}
NETWORK = {
    "in_channels": 10, "out_channels": 8, "n_heads": 2, "d_head": 8, "depth": 2, "context_dim": 6,
    "positional_encodings": True, "sequence_length": 16, "causal": True, "continuous": False,
}  # fmt: skip


def diffusion(conditioner: dict[str, Any] = GRID, **options: Any) -> RetrievalAugmentedDiffusion:
    torch.manual_seed(0)
    return RetrievalAugmentedDiffusion(
        conditioner=conditioner, unet_config=unet(context_dim=6), first_stage_config=IDENTITY, timesteps=20, **options
    )


def autoregression(conditioner: dict[str, Any] = GRID, **options: Any) -> RetrievalAugmentedTransformer:
    torch.manual_seed(0)
    network = {"target": "rdm.modules.attention.RetrievalPatchTransformer", "params": NETWORK}
    return RetrievalAugmentedTransformer(network, VQ, conditioner, **options)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(n: int = 2, side: int = 4) -> dict[str, torch.Tensor]:
    tokens = draw(n, 4, 4, 5, seed=2).half()
    return {"image": draw(n, 3, side, side), "neighbours": draw(n, 4, 6, seed=1), "neighbour_tokens": tokens}


@pytest.mark.parametrize("make", [diffusion, autoregression])
def test_the_context_holds_the_first_k_neighbours_and_their_tokens(make: Any) -> None:
    model, given = make(), batch()
    assert model.grid_tokens is not None
    context = model.context(given)
    expected = model.grid_tokens(given["neighbours"][:, :2], given["neighbour_tokens"][:, :2])
    assert context.shape == (2, 10, 6) and torch.equal(context, expected)
    assert torch.equal(context[:, ::5], given["neighbours"][:, :2])
    null = model.null_context(context)
    assert null.shape == context.shape and not null.any()
    assert not make(use_neighbours=False).context(given).any()
    dropped = make(p_uncond=0.5).drop_context(context.expand(400, -1, -1, -1).flatten(0, 1), torch.Generator())
    assert 0.4 < dropped.any(2).all(1).float().mean() < 0.6  # all of an image's tokens leave together
    assert torch.equal(dropped.any(2).any(1), dropped.any(2).all(1))
    with pytest.raises(ValueError, match=r"neighbour_tokens: got none, expected \[B, 2, 4, 5\]; set data.params.token"):
        model.context({"neighbours": given["neighbours"]})
    with pytest.raises(ValueError, match=r"neighbour_tokens: got shape \(2, 2, 16, 5\)"):
        model.context({**given, "neighbour_tokens": draw(2, 4, 16, 5)})


def test_the_grids_weights_are_trained_averaged_and_stored() -> None:
    model = diffusion(p_uncond=0.0, ema_decay=0.5)
    randomise(model.model)
    loss = model.training_step(batch(), 0)
    loss.backward()
    names = {name for name, _ in model.named_parameters() if "grid_tokens" in name}
    assert names == {f"model.grid_tokens.{name}" for name in ("places", "ranks", "project.weight", "project.bias")}
    grid = model.grid_tokens
    assert grid is not None and model.model_ema is not None
    assert all(parameter.grad.abs().sum() > 0 for parameter in grid.parameters() if parameter.grad is not None)
    trained = {id(parameter) for parameter in model.trained_parameters()}
    assert trained.issuperset(id(parameter) for parameter in grid.parameters())
    assert {f"model_ema.{name.removeprefix('model.').replace('.', '')}" for name in names} <= model.state_dict().keys()


def test_validation_with_averaged_weights_averages_those_of_the_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = diffusion(), {}
    randomise(model.model)
    assert model.model_ema is not None and model.grid_tokens is not None
    model.model_ema.restart(model.model)
    torch.nn.init.zeros_(model.grid_tokens.project.weight)  # the average keeps its earlier value
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: value.item()}))
    model.validation_step(batch(), 0)
    with model.ema_scope():
        expected: dict[str, float] = {}
        monkeypatch.setattr(model, "log", lambda name, value, **_: expected.update({name: value.item()}))
        model.validation_step(batch(), 0)
    assert logged["val/loss_ema"] == pytest.approx(expected["val/loss"]) != logged["val/loss"]


def test_the_transformers_optimiser_has_the_grids_weights() -> None:
    model = autoregression()
    decaying, others = (
        {name for name, p in model.grid_tokens.named_parameters() if any(p is each for each in group["params"])}  # type: ignore[union-attr]
        for group in model.configure_optimizers()["optimizer"].param_groups
    )
    assert decaying == {"project.weight"} and others == {"places", "ranks", "project.bias"}
    randomise(model)
    first, second = (model.loss(draw(2, 16).abs().long(), model.context(batch(seed))) for seed in (2, 2))
    other = {**batch(), "neighbour_tokens": draw(2, 4, 4, 5, seed=9)}
    assert first == second != model.loss(draw(2, 16).abs().long(), model.context(other))


@pytest.mark.parametrize("only_unet", [True, False])
def test_weights_of_a_pooled_diffusion_model_are_a_start_and_not_the_other_way(only_unet: bool, tmp_path: Path) -> None:
    pooled = diffusion(POOLED)
    assert pooled.grid_tokens is None and not any("grid" in name for name in pooled.state_dict())
    randomise(pooled.model)
    write_weights(tmp_path / "pooled.safetensors", pooled.state_dict())
    options: dict[str, Any] = {"ckpt_path": str(tmp_path / "pooled.safetensors"), "load_only_unet": only_unet}
    model = diffusion(**options)
    assert pooled.model_ema is not None
    for name, value in model.model.diffusion_model.state_dict().items():
        assert torch.equal(value, pooled.model_ema.get_buffer(f"diffusion_model.{name}".replace(".", ""))), name
    with model.ema_scope():
        assert torch.equal(model.context(batch())[:, ::5], batch()["neighbours"][:, :2])
    write_weights(tmp_path / "grid.safetensors", model.state_dict())
    again = diffusion(ckpt_path=str(tmp_path / "grid.safetensors"), load_only_unet=only_unet)
    assert torch.equal(again.context(batch()), model.context(batch()))
    with pytest.raises(ValueError, match=r"weights are of a model with tokens: grid, got .* pooled") as raised:
        diffusion(POOLED, ckpt_path=str(tmp_path / "grid.safetensors"), load_only_unet=only_unet)
    assert "\n" not in str(raised.value)


def test_grids_and_reference_latents_go_together(tmp_path: Path) -> None:
    pooled = diffusion(POOLED, use_ema=False)
    randomise(pooled.model)
    write_weights(tmp_path / "pooled.safetensors", pooled.state_dict())
    network = unet(context_dim=6) | {"target": "rdm.modules.diffusionmodules.references.ReferenceUNetModel"}
    torch.manual_seed(0)
    model = RetrievalAugmentedDiffusion(
        conditioner=GRID, unet_config=network, first_stage_config=IDENTITY, timesteps=20, references=True,
        ckpt_path=str(tmp_path / "pooled.safetensors"),
    )  # fmt: skip
    given = {**batch(), "references": draw(2, 4, 3, 4, 4, seed=3)}
    context = model.context(given)
    assert context.tokens.shape == (2, 10, 6) and context.image.shape == (2, 7, 4, 4)
    x, t = draw(2, 3, 4, 4), torch.tensor([3, 9])
    torch.testing.assert_close(model.predict_eps(x, t, context), pooled.predict_eps(x, t, context.tokens))
    assert model.training_step(given, 0).isfinite()


def test_weights_of_a_pooled_transformer_are_a_start_and_not_the_other_way(tmp_path: Path) -> None:
    pooled = autoregression(POOLED)
    write_weights(tmp_path / "pooled.safetensors", pooled.state_dict())
    model = autoregression(ckpt_path=str(tmp_path / "pooled.safetensors"))
    write_weights(tmp_path / "grid.safetensors", model.state_dict())
    again = autoregression(ckpt_path=str(tmp_path / "grid.safetensors"))
    assert torch.equal(again.context(batch()), model.context(batch()))
    with pytest.raises(ValueError, match="weights are of a model with tokens: grid"):
        autoregression(POOLED, ckpt_path=str(tmp_path / "grid.safetensors"))


def test_a_network_without_one_width_of_context_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"tokens: grid: got a U-Net with context_dim \[\], expected one width"):
        RetrievalAugmentedDiffusion(conditioner=GRID, unet_config=unet(), first_stage_config=IDENTITY)
