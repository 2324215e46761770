"""Diffusion models against numbers of the original: the forward process, losses, single steps, whole trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from golden_cases import GoldenCase, load_golden
from torch import Tensor

from ldm.models.diffusion.condition import Hybrid
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import DDPM
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.samplers import ddpm
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.stepping import Noise, Step

NAMES = ("ldm_crossattn_samplers", "ldm_x0_l1_logvar", "ddpm_pixel")
BUILT: dict[str, tuple[GoldenCase, DDPM]] = {}


def built(name: str) -> tuple[GoldenCase, DDPM]:
    if name not in BUILT:
        case = load_golden(name)
        BUILT[name] = case, case.build()
    return BUILT[name]


def replay(entries: Tensor) -> Noise:
    remaining = iter(entries)
    return lambda x: next(remaining).to(x)


@pytest.mark.parametrize("name", NAMES)
def test_forward_process_and_posterior(name: str) -> None:
    case, model = built(name)
    x0, noise, t = (case.tensors[f"in.{key}"] for key in ("z0", "noise", "t"))
    at: Callable[[str], Tensor] = lambda buffer: model.get_buffer(buffer)[t].view(-1, 1, 1, 1)  # noqa: E731
    x_t = model.schedule.add_noise(x0, noise, t)
    case.check("q.q_sample", x_t)
    case.check("q.q_mean", model.schedule.add_noise(x0, 0 * noise, t))
    case.check("q.q_variance", 1 - at("alphas_cumprod"))
    case.check("q.q_log_variance", at("log_one_minus_alphas_cumprod"))
    case.check("q.predict_start_from_noise", model.schedule.x0_from_eps(x_t, noise, t))
    case.check("q.posterior_mean", at("posterior_mean_coef1") * x0 + at("posterior_mean_coef2") * x_t)
    case.check("q.posterior_variance", at("posterior_variance"))
    case.check("q.posterior_log_variance_clipped", at("posterior_log_variance_clipped"))
    if "out.q.prior_bpd" in case.tensors:
        last = torch.full_like(t, len(model.schedule) - 1)
        mean = model.schedule.add_noise(x0, 0 * noise, last)
        logvar = model.log_one_minus_alphas_cumprod[last].view(-1, 1, 1, 1).expand_as(mean)
        nats = 0.5 * (-1.0 - logvar + logvar.exp() + mean.square())  # tiny; in float32 it depends on the order
        case.check("q.prior_bpd", nats.mean((1, 2, 3)) / math.log(2))


@pytest.mark.parametrize(
    ("name", "run", "mode"),
    [
        ("ldm_crossattn_samplers", "loss", "train"),
        ("ldm_x0_l1_logvar", "loss_train", "train"),
        ("ldm_x0_l1_logvar", "loss_val", "val"),
        ("ddpm_pixel", "loss", "train"),
    ],
)
def test_losses_and_their_gradients(name: str, run: str, mode: str) -> None:
    case, model = built(name)
    given = case.tensors
    model.zero_grad()
    terms = model.losses(given["in.z0"], given.get("in.c"), given["in.t"], given["in.noise"])
    logged = [name for name in case.part(f"out.{run}.log.{mode}")]
    assert set(terms) == set(logged)
    for term in logged:
        case.check(f"{run}.log.{mode}.{term}", terms[term].mean())
    terms["loss"].mean().backward()
    case.check(f"{run}.loss", terms["loss"].mean())
    for parameter in case.part(f"out.{run}.grad"):
        gradient = model.get_parameter(parameter).grad
        assert gradient is not None
        case.check(f"{run}.grad.{parameter}", gradient, "grad")


@pytest.mark.parametrize("name", NAMES[:2])
def test_what_the_unet_predicts(name: str) -> None:
    case, model = built(name)
    with torch.no_grad():
        got = model.model(case.tensors["in.z0"], case.tensors["in.t"], case.tensors["in.c"])
    case.check("apply.eps", got)


@pytest.mark.parametrize(("name", "run"), [("ldm_crossattn_samplers", "psteps"), ("ddpm_pixel", "psteps_clip")])
def test_single_ancestral_steps(name: str, run: str) -> None:
    case, model = built(name)
    denoise = model.denoiser(case.tensors.get("in.c"))  # clips x0 in pixel space, and there only
    x, noise = case.tensors["in.x_T"], case.tensors["in.noise"]
    seen: list[Step] = []
    for key in case.part(f"out.{run}"):
        t = int(key.removeprefix("t"))
        seen.clear()
        ddpm(denoise, x, model.schedule, [t - 1, t] if t else [t], noise=lambda _: noise, on_step=seen.append)
        case.check(f"{run}.{key}", seen[0].x)


@pytest.mark.parametrize("run", ["anc10", "progressive10"])
def test_ancestral_sampling_of_a_model_that_predicts_x0(run: str) -> None:
    case, model = built("ldm_x0_l1_logvar")
    given = case.part(f"in.{run}")
    noises = iter(given.get("noise_q", ()))
    steps: list[Tensor] = []
    believed: list[Tensor] = []

    def observe(step: Step) -> Tensor:
        x = step.x
        if "mask" in given:  # the original keeps the known part at the level that the step left
            known = model.schedule.add_noise(given["x0"], next(noises), torch.full((len(x),), step.t))
            x = known * given["mask"] + (1 - given["mask"]) * x
        steps.append(x)
        believed.append(step.x0)
        return x

    chain = NoiseSchedule(model.schedule.alphas_cumprod[:10])
    noise = replay(given["noise_p"])
    denoise = model.denoiser(case.tensors["in.c"])
    got = ddpm(denoise, case.tensors["in.x_T"], chain, 10, noise=noise, on_step=observe)
    case.check(f"{run}.sample", got)
    if "mask" in given:
        case.check(f"{run}.intermediates", torch.stack([case.tensors["in.x_T"], *steps]))
    else:
        case.check(f"{run}.x0_partial", torch.stack(believed))


RUNS = {
    "ddim10": (DDIMSampler, 1.0, {}),
    "ddim10_cfg": (DDIMSampler, 2.5, {}),
    "plms10": (PLMSSampler, 1.0, {}),
    "plms10_cfg": (PLMSSampler, 2.0, {}),
    "inpaint10": (DDIMSampler, 1.0, {}),
    "ddim10_eta1": (DDIMSampler, 1.0, {"eta": 1.0}),
    "ddim10_eta05_temp": (DDIMSampler, 1.0, {"eta": 0.5, "temperature": 0.7}),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_samplers_doors_take_compvis_calls(run: str) -> None:
    case, model = built("ldm_crossattn_samplers")
    door, scale, options = RUNS[run]
    given = case.part(f"in.{run}")
    options = options | {key: given[key] for key in ("mask", "x0") if key in given}
    for key in ("noise_p", "noise_q"):
        if key in given:
            options["noise"] = replay(given[key])
    condition = {"c_crossattn": [case.tensors["in.c"]]} if scale != 1 else case.tensors["in.c"]
    got, steps = door(model).sample(
        S=10,
        batch_size=2,
        shape=(3, 8, 8),
        conditioning=condition,
        verbose=False,
        x_T=case.tensors["in.x_T"],
        log_every_t=1,
        unconditional_guidance_scale=scale,
        unconditional_conditioning=[case.tensors["in.uc"]],
        **options,
    )
    case.check(f"{run}.sample", got)
    for key in ("x_inter", "pred_x0"):
        case.check(f"{run}.{key}", torch.stack(steps[key]))


@pytest.mark.parametrize("name", ["dwrap_ldm_concat", "dwrap_ldm_hybrid"])
def test_where_conditions_enter(name: str) -> None:
    case = load_golden(name)
    wrapper = case.build()
    given = case.part("in")
    condition: Tensor | Hybrid = given["c_concat0"]
    if name.endswith("hybrid"):
        condition = Hybrid(condition, torch.cat([given["c_crossattn0"], given["c_crossattn1"]], dim=1))
    with torch.no_grad():
        case.check("y", wrapper(given["x"], given["t"], condition))
        with pytest.raises(ValueError, match="NoneType.*conditioning_key"):
            wrapper(given["x"], given["t"])
