"""Editing against mathematics: normal data have an exact denoiser, and known conditional distributions."""

import math
from dataclasses import replace

import pytest
import torch
from small_models import IDENTITY, randomise, unet
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.editing import Edit, invert, put_back
from ldm.models.diffusion.samplers import SAMPLERS, ddim
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.stepping import Step, seeded_noise, seeded_step_noise

SCHEDULE = NoiseSchedule.linear(1000, 0.0015, 0.0195)
MEAN, STD = 0.7, 0.5


def exact_denoiser(schedule: NoiseSchedule):
    """Returns E[eps | x_t] for data drawn from N(MEAN, STD^2)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        level = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - level).sqrt() * (x - level.sqrt() * MEAN) / (level * STD**2 + 1 - level)

    return denoise


def flow(x: Tensor, start: int, end: int, schedule: NoiseSchedule) -> Tensor:
    """Returns where the probability flow leads from x: it keeps the standardised value."""
    first, last = schedule.alphas_cumprod[start], schedule.alphas_cumprod[end]
    standard = (x - first.sqrt() * MEAN) / (first * STD**2 + 1 - first).sqrt()
    return last.sqrt() * MEAN + (last * STD**2 + 1 - last).sqrt() * standard


def picture() -> Tensor:
    return seeded_noise([11], (1, 4, 4)).double()


def run(edit: Edit | None, seeds: list[int], name: str = "ddim", steps: int = 6) -> Tensor:
    """Samples with an edit as ``DDPM.sample`` does."""
    denoise, x = exact_denoiser(SCHEDULE), seeded_noise(seeds, (1, 4, 4)).double()
    times, on_step = SCHEDULE.timesteps(steps).tolist(), None
    if edit is not None:
        x, times, on_step = edit.begin(x, SCHEDULE, times, seeds, denoise)
    noise = seeded_step_noise(seeds)
    return SAMPLERS[name](denoise, x, SCHEDULE, times, noise=noise, on_step=on_step) if times else x


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_an_inversion_leads_back_the_better_the_more_steps_and_passes(passes: int) -> None:
    part = NoiseSchedule(SCHEDULE.alphas_cumprod[100:])  # the first times are too stiff to see the order
    denoise, x0, errors = exact_denoiser(part), picture(), []
    for stride in (20, 10):
        times = range(0, 801, stride)
        noise = invert(denoise, x0, part, times, passes)
        torch.testing.assert_close(noise, flow(x0, 0, 800, part), rtol=0, atol=0.1)  # DDIM's own error
        errors.append(float((ddim(denoise, noise, part, times) - x0).abs().max()))
    assert errors[-1] < 0.04**passes
    assert passes - 0.25 < math.log2(errors[0] / errors[1]) < passes + 0.5


def test_many_passes_are_an_exact_inverse() -> None:
    denoise = exact_denoiser(SCHEDULE)
    noise = invert(denoise, picture(), SCHEDULE, 20, passes=60)
    torch.testing.assert_close(ddim(denoise, noise, SCHEDULE, 20), picture(), rtol=0, atol=1e-9)


def test_an_inversion_is_observed_from_the_picture_to_the_noise() -> None:
    seen: list[Step] = []
    noise = invert(exact_denoiser(SCHEDULE), picture(), SCHEDULE, [0, 300, 600], on_step=seen.append)
    assert [(step.index, step.t, step.t_next) for step in seen] == [(0, 0, None), (1, 300, 0), (2, 600, 300)]
    assert torch.equal(noise, seen[-1].x)
    stopped = invert(exact_denoiser(SCHEDULE), picture(), SCHEDULE, [0, 300, 600], on_step=lambda step: 0 * step.x)
    assert not stopped.any()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mask_that_keeps_all_or_nothing(name: str) -> None:
    """All: the picture itself. Nothing: what is sampled without one, to the last bit."""
    ones, seeds = torch.ones(1, 1, 4, 4).double(), [3, 4]
    assert torch.equal(run(Edit(picture(), ones, repeats=2), seeds, name), picture().expand(2, -1, -1, -1))
    plain = run(None, seeds, name)
    for edit in (Edit(picture(), 0 * ones, repeats=2), Edit(picture())):
        assert torch.equal(run(edit, seeds, name), plain)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_edited_image_is_the_same_in_any_batch_and_kept_where_it_is_to_be(name: str) -> None:
    keep = torch.zeros(1, 1, 4, 4).double()
    keep[..., :2] = 1
    edit = Edit(picture(), keep, strength=0.8, repeats=2)
    together = run(edit, [3, 17, 8], name)
    assert torch.equal(together[1], run(edit, [17], name)[0])
    assert torch.equal(together[[2, 0]], run(edit, [8, 3], name))
    assert torch.equal(together[..., :2], picture().expand(3, -1, -1, -1)[..., :2])
    assert (together[0] - together[1])[..., 2:].abs().min() > 1e-3


def test_strength_is_the_time_at_which_sampling_begins() -> None:
    x0, noise, seeds = picture(), seeded_noise([5], (1, 4, 4)).double(), [5]
    assert torch.equal(run(Edit(x0, strength=0.0), seeds), x0)
    assert torch.equal(run(Edit(x0, strength=1.0), seeds), run(None, seeds))
    distances = []
    for strength in (0.1, 0.3, 0.6, 0.9):
        got = run(Edit(x0, strength=strength), seeds, "heun", 100)
        start = SCHEDULE.timesteps(100)[round(100 * strength) - 1]
        expected = flow(SCHEDULE.add_noise(x0, noise, start[None]), int(start), 0, SCHEDULE)
        torch.testing.assert_close(got, expected, rtol=0, atol=0.01)
        distances.append(float((got - x0).square().mean()))
    assert distances == sorted(distances)


def test_an_inversion_begins_at_the_strength_too() -> None:
    denoise, x0 = exact_denoiser(SCHEDULE), picture()
    for strength, last in ((1.0, 834), (0.5, 334)):
        edit = Edit(x0, strength=strength, invert=True)
        x, times, _ = edit.begin(
            torch.zeros(2, 1, 4, 4).double(), SCHEDULE, SCHEDULE.timesteps(6).tolist(), [0, 1], denoise
        )
        assert times[-1] == last
        assert torch.equal(x, invert(denoise, x0, SCHEDULE, times).expand(2, -1, -1, -1))


RHO, KNOWN = 0.8, 1.5


def correlated(x: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for pairs of unit variance and correlation RHO, along the last axis."""
    level = SCHEDULE.alphas_cumprod[int(t[0])]
    covariance = level * torch.tensor([[1, RHO], [RHO, 1]]).double() + (1 - level) * torch.eye(2).double()
    return (1 - level).sqrt() * x @ torch.linalg.inv(covariance)


@pytest.mark.parametrize("name", SAMPLERS)
def test_repeats_bring_what_is_painted_to_fit_what_is_known(name: str) -> None:
    """The second of a pair given the first is normal: mean RHO * KNOWN, variance 1 - RHO^2. One pass falls short."""
    known, keep = torch.full((1, 1, 3000, 2), KNOWN).double(), torch.tensor([1.0, 0.0]).double().expand(1, 1, 3000, 2)
    found = {}
    for repeats in (1, 8):
        edit = Edit(known, keep, repeats=repeats)
        x, times = seeded_noise([0], (1, 3000, 2)).double(), SCHEDULE.timesteps(25).tolist()
        x, times, on_step = edit.begin(x, SCHEDULE, times, [0], correlated)
        assert len(times) == 25 * repeats
        painted = SAMPLERS[name](correlated, x, SCHEDULE, times, noise=seeded_step_noise([0]), on_step=on_step)[..., 1]
        found[repeats] = float(painted.mean()), float(painted.std())
    assert found[8][0] == pytest.approx(RHO * KNOWN, abs=0.15)
    assert found[8][1] == pytest.approx(math.sqrt(1 - RHO**2), abs=0.15)
    assert found[1][0] < 0.75 * RHO * KNOWN


def test_the_known_part_is_put_back_under_noise_of_its_time() -> None:
    known, x, keep = torch.full((1, 1, 100, 100), 2.0), torch.zeros(1, 1, 100, 100), torch.zeros(1, 1, 100, 100)
    keep[..., :50] = 1
    got = put_back(x, known, keep, SCHEDULE, 400, seeded_step_noise([2]))
    level = float(SCHEDULE.alphas_cumprod[400])
    assert float(got[..., :50].mean()) == pytest.approx(2 * math.sqrt(level), abs=0.05)
    assert float(got[..., :50].std()) == pytest.approx(math.sqrt(1 - level), abs=0.03)
    assert torch.equal(got[..., 50:], x[..., 50:])


def test_a_model_edits_with_all_its_options() -> None:
    torch.manual_seed(0)
    model = LatentDiffusion(IDENTITY, unet_config=unet(4), timesteps=20, conditioning_key="crossattn", use_ema=False)
    randomise(model.model)
    for parameter in model.model.parameters():
        parameter.data.mul_(0.5)
    draw = torch.Generator().manual_seed(1)
    image, own, other = (torch.randn(*shape, generator=draw) for shape in ((1, 3, 8, 8), (1, 2, 4), (1, 2, 4)))
    keep = torch.ones(1, 1, 8, 8)
    keep[..., 4:, :] = 0
    edit, options = Edit(model.to_latent(image), keep), {"steps": 5, "scale": 2.0, "null": torch.zeros(1, 2, 4)}
    got = model.sample(other, (3, 8, 8), [7], edit=edit, **options)
    assert torch.equal(got[..., :4, :], image[..., :4, :]) and not torch.equal(got, image)
    assert torch.equal(model.sample(other, (3, 8, 8), [7], edit=replace(edit, strength=0.0), **options), image)
    back = [model.sample(own, (3, 8, 8), [0], steps=10, edit=Edit(image, None, 1.0, 1, True, c)) for c in (own, other)]
    errors = [float((each - image).abs().mean()) for each in back]
    assert errors[0] < errors[1] / 2


def test_refuses() -> None:
    denoise, x0, ones = exact_denoiser(SCHEDULE), picture(), torch.ones(1, 1, 4, 4)
    for edit, message in (
        (Edit(x0, strength=1.5), "strength is 1.5, expected a number from 0 to 1"),
        (Edit(x0, ones, invert=True), "mask.*inversion"),
        (Edit(x0, torch.ones(1, 1, 4, 8)), r"mask has shape \[1, 1, 4, 8\], expected \[1, 1, 4, 4\]"),
        (Edit(x0[..., :2]), r"latent of the picture has shape \[1, 1, 4, 2\], expected \[1, 1, 4, 4\]"),
        (Edit(x0, ones, repeats=0), "got 0 repeats, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            edit.begin(x0, SCHEDULE, [1, 5], [0], denoise)
    with pytest.raises(ValueError, match="0 passes"):
        invert(denoise, x0, SCHEDULE, 5, passes=0)
