"""Samplers against mathematics (normal data have an exact denoiser) and the original's trajectories."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from golden_cases import GoldenCase, error_of, load_golden
from torch import Tensor

from ldm.models.diffusion.guidance import Denoiser, guide
from ldm.models.diffusion.samplers import SAMPLERS, clip_x0, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, unipc
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.stepping import Noise, Step, seeded_noise, seeded_step_noise

SCHEDULE = NoiseSchedule.linear(1000, 0.0015, 0.0195)
MEAN = 0.7


def exact_denoiser(std: float, schedule: NoiseSchedule = SCHEDULE):
    """Returns E[eps | x_t] for data drawn from N(MEAN, std^2)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        level = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - level).sqrt() * (x - level.sqrt() * MEAN) / (level * std**2 + 1 - level)

    return denoise


def exact_end(x: Tensor, std: float, start: int, schedule: NoiseSchedule = SCHEDULE) -> Tensor:
    """Returns where the probability flow leads from x at time ``start``: it keeps the standardised value."""
    first, last = schedule.alphas_cumprod[start], schedule.alphas_cumprod[0]
    standard = (x - first.sqrt() * MEAN) / (first * std**2 + 1 - first).sqrt()
    return last.sqrt() * MEAN + (last * std**2 + 1 - last).sqrt() * standard


def start(batch: int = 2) -> Tensor:
    return seeded_noise(range(batch), (1, 4, 4)).double()


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
@pytest.mark.parametrize("name", ["ddim", "plms", "heun", "dpmpp_2m", "unipc"])
def test_a_single_data_point_is_reached_exactly_in_any_number_of_steps(name: str, steps: int) -> None:
    x = start()
    times = SCHEDULE.timesteps(steps)
    got = SAMPLERS[name](exact_denoiser(0.0), x, SCHEDULE, steps)
    torch.testing.assert_close(got, exact_end(x, 0.0, int(times[-1])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 30])
def test_ddpm_ends_in_x0(steps: int) -> None:
    got = ddpm(exact_denoiser(0.0), start(), SCHEDULE, steps, noise=seeded_step_noise([0, 1]))
    torch.testing.assert_close(got, torch.full_like(got, MEAN), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("plms", 2), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_converges_at_its_order(name: str, order: int) -> None:
    part = NoiseSchedule(SCHEDULE.alphas_cumprod[100:])  # the first times are too stiff to see the order
    x, last = start(), 800
    errors = []
    for stride in (10, 5):
        got = SAMPLERS[name](exact_denoiser(0.5, part), x, part, range(0, last + 1, stride))
        errors.append(float((got - exact_end(x, 0.5, last, part)).abs().max()))
    assert errors[-1] < 0.01
    assert order - 0.25 < math.log2(errors[0] / errors[1]) < order + 0.5


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpmpp_2m_sde])
def test_stochastic_samples_have_the_distribution_of_the_data(sampler) -> None:
    x = seeded_noise([5], (1, 100, 100)).double()
    schedule = NoiseSchedule.linear(200, 0.0075, 0.0975)
    got = sampler(exact_denoiser(0.5, schedule), x, schedule, 200, eta=1.0, noise=seeded_step_noise([5]))
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(got.std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("v_posterior", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_an_ancestral_step_is_that_of_the_original_at_every_time(limit: float | None, v_posterior: float) -> None:
    """Its coefficients are computed in float64, which shows at the last times of a cosine schedule.

    The mean is that of the posterior of x0, and ``v_posterior`` of its variance is beta (CompVis' ``p_sample``).
    """
    schedule = replace(NoiseSchedule.cosine(1000), v_posterior=v_posterior)
    generator = torch.Generator().manual_seed(0)
    x, eps, fresh = torch.randn(3, 2, 3, 4, 4, generator=generator)
    fixed: Denoiser = lambda *_: eps  # noqa: E731
    denoise = fixed if limit is None else clip_x0(fixed, schedule, limit)
    seen: list[Step] = []
    for t in (0, 1, 2, 3, 10, 100, 500, 900):
        total = schedule.alphas_cumprod[t]
        before = schedule.alphas_cumprod[t - 1] if t else torch.ones((), dtype=torch.float64)
        beta = 1 - total / before
        x0 = (x - (1 - total).sqrt() * eps.double()) / total.sqrt()
        x0 = x0 if limit is None else x0.clamp(-limit, limit)
        mean = beta * before.sqrt() / (1 - total) * x0 + (1 - before) * (total / before).sqrt() / (1 - total) * x
        variance = (1 - v_posterior) * beta * (1 - before) / (1 - total) + v_posterior * beta
        expected = mean + (variance.sqrt() * fresh if t else 0)
        seen.clear()
        ddpm(denoise, x, schedule, [t - 1, t] if t else [0], noise=lambda _: fresh, on_step=seen.append)
        assert error_of(seen[0].x, expected) <= 4e-6, t


def test_a_wider_posterior_is_of_ancestral_sampling_alone() -> None:
    wide = replace(SCHEDULE, v_posterior=1.0)
    noisy = [
        ddim(exact_denoiser(0.5), start(), each, 5, eta=1.0, noise=seeded_step_noise([0, 1]))
        for each in (SCHEDULE, wide)
    ]
    assert torch.equal(*noisy)
    quiet = [ddpm(exact_denoiser(0.5), start(), each, 5, eta=0.0) for each in (SCHEDULE, wide)]
    assert torch.equal(*quiet)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    eta = 1.0 if name in ("ddpm", "dpmpp_2m_sde") else 0.0

    def run(seeds: list[int], eta: float) -> Tensor:
        x, noise = seeded_noise(seeds, (1, 4, 4)), seeded_step_noise(seeds)
        return SAMPLERS[name](exact_denoiser(0.5), x, SCHEDULE, 10, eta=eta, noise=noise)

    together = run([3, 17, 8], eta)
    assert torch.equal(together[1], run([17], eta)[0])
    assert torch.equal(together[2], run([8, 3], eta)[0])
    assert not torch.allclose(together[0], together[1])
    if name == "ddim":
        assert torch.equal(run([3, 17], 0.5)[1], run([17], 0.5)[0])


def test_an_sde_solver_without_noise_is_the_solver_of_the_flow() -> None:
    got = dpmpp_2m_sde(exact_denoiser(0.5), start(), SCHEDULE, 12, eta=0.0)
    assert torch.equal(got, dpmpp_2m(exact_denoiser(0.5), start(), SCHEDULE, 12))


def test_a_time_may_come_twice() -> None:
    """Quadratic spacing has such; UniPC looks again, at the corrected latent."""
    for name, tolerance in (("ddim", 1e-7), ("dpmpp_2m", 1e-7), ("unipc", 0.05)):
        once, twice = (SAMPLERS[name](exact_denoiser(0.5), start(), SCHEDULE, t) for t in ([1, 9, 40], [1, 9, 9, 40]))
        torch.testing.assert_close(once, twice, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "unipc"])
def test_samples_a_model_of_v_from_no_signal_at_all(name: str) -> None:
    """In float32: what is left of the image at the last time is 2**-12 of its noise."""
    schedule = SCHEDULE.with_zero_terminal_snr("v")
    exact = exact_denoiser(0.5, schedule)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        level = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        eps = exact(x.double(), t)
        v = (eps - (1 - level).sqrt() * x) / level.sqrt()  # what a network that learned it would say
        return schedule.to_eps("v", v.float(), x, t)

    x = start().float()
    times = schedule.timesteps(500, "trailing").tolist()
    got = SAMPLERS[name](denoise, x, schedule, times)
    torch.testing.assert_close(got.double(), exact_end(x.double(), 0.5, 999, schedule), rtol=0.02, atol=0.02)


# diffusers' name of each solver, and what makes it walk as we do: no lower order at the end.
DIFFUSERS = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "sigma_min", "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_takes_the_steps_of_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    kind, options = DIFFUSERS[name]
    scheduler = getattr(diffusers, kind)(
        trained_betas=SCHEDULE.buffers()["betas"].numpy(), timestep_spacing="leading", steps_offset=1, **options
    )
    scheduler.set_timesteps(20)
    denoise, x = exact_denoiser(0.5), start().float()
    noises = torch.randn(20, *x.shape, generator=torch.Generator().manual_seed(0))
    theirs = x
    for i, t in enumerate(scheduler.timesteps):
        extra = {"variance_noise": noises[i]} if "sde" in name else {}
        theirs = scheduler.step(denoise(theirs.double(), t.expand(2)).float(), t, theirs, **extra).prev_sample
    given = {"noise": replay(noises)} if "sde" in name else {}
    times = sorted(scheduler.timesteps.tolist())
    ours = SAMPLERS[name](lambda x, t: denoise(x.double(), t).float(), x, SCHEDULE, times, **given)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_step_noise_continues_after_the_starting_noise() -> None:
    first = seeded_noise([4], (2, 3, 3))
    noise = seeded_step_noise([4])
    second, third = noise(first), noise(first)
    generator = torch.Generator().manual_seed(4)
    for got in (first, second, third):
        assert torch.equal(got[0], torch.randn(2, 3, 3, generator=generator))
    with pytest.raises(ValueError, match="batch of 2 for 1 seeds"):
        noise(torch.zeros(2, 2, 3, 3))


def test_observer_sees_every_step_and_may_replace_x() -> None:
    seen: list[Step] = []
    result = ddim(exact_denoiser(0.5), start(), SCHEDULE, 5, on_step=lambda step: seen.append(step))
    assert [(step.index, step.t, step.t_next) for step in seen] == [
        (0, 801, 601),
        (1, 601, 401),
        (2, 401, 201),
        (3, 201, 1),
        (4, 1, None),
    ]
    assert torch.equal(seen[-1].x, result)
    assert torch.equal(ddim(exact_denoiser(0.5), start(), SCHEDULE, 5, on_step=lambda s: 0 * s.x), 0 * result)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "unipc"])
def test_goes_on_from_what_an_observer_puts_in_the_place_of_x(name: str) -> None:
    """As inpainting does; all data being one point, the flow from there is known."""
    x, other = start(), start() + 1.0
    got = SAMPLERS[name](exact_denoiser(0.0), x, SCHEDULE, 8, on_step=lambda step: other if step.index == 3 else None)
    torch.testing.assert_close(got, exact_end(other, 0.0, int(SCHEDULE.timesteps(8)[3])), rtol=1e-4, atol=1e-4)


def test_refuses() -> None:
    denoise, x = exact_denoiser(0.5), start()
    with pytest.raises(ValueError, match="eta is 0.5.*noise"):
        ddim(denoise, x, SCHEDULE, 5, eta=0.5)
    with pytest.raises(ValueError, match="eta is 1.0.*noise"):
        ddpm(denoise, x, SCHEDULE, 5)
    with pytest.raises(ValueError, match="eta is 1.0.*noise"):
        dpmpp_2m_sde(denoise, x, SCHEDULE, 5)
    for name in ("plms", "heun", "dpmpp_2m", "unipc"):
        with pytest.raises(ValueError, match=f"eta.*{name}"):
            SAMPLERS[name](denoise, x, SCHEDULE, 5, eta=0.5)
    with pytest.raises(ValueError, match="order 4.*1, 2 or 3"):
        unipc(denoise, x, SCHEDULE, 5, order=4)
    with pytest.raises(ValueError, match="1 to 1000"):
        ddim(denoise, x, SCHEDULE, 1001)
    with pytest.raises(ValueError, match=r"\[5, 3\].* 999"):
        ddim(denoise, x, SCHEDULE, [5, 3])


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_golden("ldm_crossattn_samplers")


@pytest.fixture(scope="module")
def unet(case: GoldenCase) -> torch.nn.Module:
    config = case.card["config"]["params"]["unet_config"]
    module, _, name = config["target"].rpartition(".")
    model = getattr(importlib.import_module(module), name)(**config["params"])
    prefix = "model.diffusion_model."
    model.load_state_dict({k.removeprefix(prefix): w for k, w in case.weights.items() if k.startswith(prefix)})
    return model.eval()


def replay(entries: Tensor, scale: float = 1.0) -> Noise:
    remaining = iter(entries)
    return lambda x: scale * next(remaining).to(x)


RUNS = {
    "ddim10": ("ddim", 10, 1.0, {}),
    "ddim10_cfg": ("ddim", 10, 2.5, {}),
    "ddim30": ("ddim", [*range(1, 1000, 33)], 1.0, {}),
    "plms10": ("plms", 10, 1.0, {}),
    "plms10_cfg": ("plms", 10, 2.0, {}),
    "ddim10_eta1": ("ddim", 10, 1.0, {"eta": 1.0}),
    "ddim10_eta05_temp": ("ddim", 10, 1.0, {"eta": 0.5, "temperature": 0.7}),
}


@pytest.mark.parametrize("name", RUNS)
def test_follows_the_originals_trajectory(name: str, case: GoldenCase, unet: torch.nn.Module) -> None:
    sampler, steps, scale, options = RUNS[name]
    options = dict(options)
    temperature = options.pop("temperature", 1.0)
    if options:
        options["noise"] = replay(case.tensors[f"in.{name}.noise_p"], temperature)
    denoise = guide(unet, case.tensors["in.c"], case.tensors["in.uc"], scale)
    seen: list[Step] = []
    x = case.tensors["in.x_T"]
    got = SAMPLERS[sampler](denoise, x, SCHEDULE, steps, on_step=lambda step: seen.append(step), **options)
    case.check(f"{name}.sample", got)
    trajectory = torch.stack([x, *(step.x for step in seen)])
    case.check(f"{name}.x_inter", trajectory)
    believed = torch.stack([x, *(step.x0 for step in seen)])
    case.check(f"{name}.pred_x0", believed)


def test_inpaints_like_the_original(case: GoldenCase, unet: torch.nn.Module) -> None:
    given = case.part("in.inpaint10")
    known, mask, noises = given["x0"], given["mask"], iter(given["noise_q"])

    def keep_known(x: Tensor, t: int | None) -> Tensor:
        if t is None:
            return x
        noisy = SCHEDULE.add_noise(known, next(noises), torch.full((len(x),), t))
        return noisy * mask + (1 - mask) * x

    x = keep_known(case.tensors["in.x_T"], 901)
    denoise = guide(unet, case.tensors["in.c"])
    got = ddim(denoise, x, SCHEDULE, 10, on_step=lambda step: keep_known(step.x, step.t_next))
    case.check("inpaint10.sample", got)


def test_ancestral_matches_the_original(case: GoldenCase, unet: torch.nn.Module) -> None:
    seen: list[Tensor] = []
    chain = NoiseSchedule(SCHEDULE.alphas_cumprod[:20])
    ddpm(
        guide(unet, case.tensors["in.c"]),
        case.tensors["in.x_T"],
        chain,
        20,
        noise=replay(case.tensors["in.anc20.noise_p"]),
        on_step=lambda step: seen.append(step.x),
    )
    case.check("anc20.sample", seen[-1])
    case.check("anc20.intermediates", torch.stack([case.tensors["in.x_T"], *seen]))
