"""The released retrieval-augmented model, shrunk, against numbers of the original; and CompVis' names for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, load_golden
from small_models import IDENTITY, unet
from torch import Tensor

from ldm.checkpoint import write_weights
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.util import instantiate_from_config
from rdm.models.diffusion.ddpm import MinimalRETRODiffusion
from rdm.modules.encoders.nn_encoders import CLIPEmbeddingReshaper, IdentityEncoder

RETRO: dict[str, Any] = {
    "k_nn": 2,
    "query_key": "clip_img_emb",
    "nn_key": "nn_embeddings",
    "retrieval_encoder_cfg": {"target": "torch.nn.Identity"},
    "conditioning_key": "retro_only",
    "cond_stage_config": "__is_unconditional__",
    "unet_config": unet(6),
    "first_stage_config": IDENTITY,
    "timesteps": 20,
}


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_golden("rdm_minimalretro")


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> MinimalRETRODiffusion:
    return case.build()


def replay(entries: Tensor) -> Any:
    remaining = iter(entries)
    return lambda x: next(remaining).to(x)


def batch_of(case: GoldenCase) -> dict[str, Tensor]:
    return {"image": case.tensors["in.image"].movedim(-1, 1), "nn_embeddings": case.tensors["in.nn_embeddings"]}


def sampled(case: GoldenCase, model: MinimalRETRODiffusion, context: Tensor, scale: float, **options: Any) -> tuple:
    """CompVis' sampling under the averaged weights, from the case's own noise."""
    with model.ema_scope():
        return DDIMSampler(model).sample(
            10,
            2,
            (3, 8, 8),
            context,
            x_T=case.tensors["in.x_T"],
            log_every_t=1,
            unconditional_guidance_scale=scale,
            unconditional_conditioning=model.null_context(context),
            **options,
        )


def test_latent_context_and_null(case: GoldenCase, model: MinimalRETRODiffusion) -> None:
    batch = batch_of(case)
    context = model.context(batch)
    case.check("z", model.to_latent(batch["image"]))
    case.check("r", context)
    assert torch.equal(model.null_context(context), case.tensors["out.uncond_label0"].abs())
    case.check("uncond_label1.5", model.null_context(context, length=1.5))
    case.check("uncond_labelNone", model.unconditional_guidance_vex.expand(2, -1))


def test_losses_and_their_gradient(case: GoldenCase, model: MinimalRETRODiffusion) -> None:
    batch = batch_of(case)
    t, noise = case.tensors["in.t"], case.tensors["in.noise"]
    model.zero_grad()
    terms = model.losses(model.to_latent(batch["image"]), model.context(batch), t, noise)
    for mode in ("train", "val"):
        for name in terms:
            case.check(f"p_losses.{mode}.{name}", terms[name].mean())
    terms["loss"].mean().backward()
    case.check("shared_step.loss", terms["loss"].mean())
    gradient = model.get_parameter("model.diffusion_model.out.2.weight").grad
    assert gradient is not None
    case.check("p_losses.grad.model.diffusion_model.out.2.weight", gradient, "grad")


@torch.no_grad()
def test_predictions_with_and_without_averaging(case: GoldenCase, model: MinimalRETRODiffusion) -> None:
    z, t, context = case.tensors["out.z"], case.tensors["in.t"], case.tensors["out.r"]
    case.check("apply_model", model.model(z, t, context))
    with model.ema_scope():
        case.check("apply_model_ema", model.model(z, t, context))
    on_codes = case.tensors["out.ddim_quantx0.sample"]
    case.check("decode_first_stage_force_not_quantize", model.first_stage_model.decode(on_codes, quantize=False))


@pytest.mark.parametrize(
    ("run", "scale", "options"),
    [
        ("cfg2", 2.0, {}),
        ("g1", 1.0, {}),
        ("eta1_cfg2", 2.0, {"eta": 1.0}),
        ("quantx0", 2.0, {"quantize_x0": True}),
    ],
)
def test_ddim_trajectories(
    case: GoldenCase, model: MinimalRETRODiffusion, run: str, scale: float, options: dict[str, Any]
) -> None:
    noise = {"noise": replay(case.tensors["in.eta1_noise"])} if "eta" in options else {}
    latent, steps = sampled(case, model, case.tensors["out.r"], scale, **options, **noise)
    case.check(f"ddim_{run}.sample", latent)
    for name in ("x_inter", "pred_x0"):
        case.check(f"ddim_{run}.{name}", torch.stack(steps[name]))
    case.check(f"ddim_{run}.image", model.to_image(latent))


def test_ways_to_ask(case: GoldenCase, model: MinimalRETRODiffusion) -> None:
    neighbours, query = case.tensors["in.pool"][case.tensors["in.nns"]], case.tensors["in.query_emb"]
    unit = F.normalize(neighbours, dim=-1)
    contexts = {
        "sample_from_rdata": neighbours,
        "sample_with_query": torch.cat([query[:, None], neighbours[:, :3]], dim=1),
        "sample_with_query_omit_norm": unit,
        "sample_with_query_norm": torch.cat([F.normalize(query, dim=-1)[:, None], unit[:, :3]], dim=1),
    }
    for name, context in contexts.items():
        case.check(name, model.to_image(sampled(case, model, context, 2.0)[0]))


def test_the_stored_direction_is_loaded_where_there_is_one(tmp_path: Path) -> None:
    made = MinimalRETRODiffusion(**RETRO)
    assert made.unconditional_guidance_vex.shape == (6,)
    state = made.state_dict() | {"unconditional_guidance_vex": torch.arange(6.0)}
    write_weights(file := tmp_path / "m.safetensors", state)
    assert torch.equal(
        MinimalRETRODiffusion(**RETRO, ckpt_path=str(file)).unconditional_guidance_vex, torch.arange(6.0)
    )
    made.unconditional_guidance_vex.zero_()
    assert torch.equal(made.null_context(torch.ones(1, 2, 6), length=2.0), torch.zeros(1, 2, 6))
    without = {name: value for name, value in state.items() if name != "unconditional_guidance_vex"}
    write_weights(file, without)
    assert MinimalRETRODiffusion(**RETRO, ckpt_path=str(file)).unconditional_guidance_vex.norm() > 0


def test_what_no_release_has_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    target = "rdm.models.diffusion.ddpm.MinimalRETRODiffusion"
    for wrong, message in [
        ({"retrieval_encoder_cfg": {"target": "torch.nn.Linear"}}, "retrieval_encoder_cfg: got torch.nn.Linear"),
        ({"conditioning_key": "hybrid"}, "conditioning_key: got 'hybrid', expected retro_only"),
        ({"cond_stage_config": {"target": "torch.nn.Identity"}}, "cond_stage_config: got"),
        ({"retro_concat": True}, "MinimalRETRODiffusion has no parameter 'retro_concat'"),
        ({"linear_strat": 0.1}, "did you mean 'linear_start'"),
    ]:
        with pytest.raises(ValueError, match=message):
            instantiate_from_config({"target": target, "params": RETRO | wrong})
    with caplog.at_level(logging.WARNING):
        MinimalRETRODiffusion(**RETRO, nn_memory="memory.p")
    assert "nn_memory" in caplog.text


def test_embeddings_pass_as_they_are() -> None:
    given = load_golden("clip_reshaper").tensors
    for name, source in (("y", "x"), ("y64", "x64")):
        got = CLIPEmbeddingReshaper()(given[f"in.{source}"])
        assert got.dtype == torch.float32 and torch.equal(got, given[f"out.{name}"])
    assert torch.equal(IdentityEncoder().encode(given["in.x"]), given["out.identity_encode"])
    kept = IdentityEncoder(to_float32=False).encode(given["in.x"])
    assert kept.dtype == torch.float16 and torch.equal(kept, given["out.identity_encode_nofloat"])
