"""The noise schedule against the original's buffers and times, and its closed forms."""

from dataclasses import replace

import pytest
import torch
from golden_cases import error_of, load_golden

from ldm.models.diffusion.schedule import NoiseSchedule

SCHEDULES = load_golden("schedules")


def from_golden(params: dict) -> NoiseSchedule:
    known = {"beta_schedule": "name", "timesteps": "timesteps", "linear_start": "linear_start"}
    known |= {"linear_end": "linear_end"}
    schedule = NoiseSchedule.from_name(**{known[key]: value for key, value in params.items() if key in known})
    return replace(schedule, v_posterior=params.get("v_posterior", 0.0))


@pytest.mark.parametrize("entry", SCHEDULES.card["options"]["schedules"], ids=lambda entry: entry["name"])
def test_buffers_match_original(entry: dict) -> None:
    expected = SCHEDULES.part(f"out.{entry['name']}")
    schedule, params = from_golden(entry["params"]), entry["params"]
    got = schedule.buffers()
    assert len(got) == 12
    got["lvlb_weights"] = schedule.lvlb_weights(params.get("parameterization", "eps"))
    assert set(got) == set(expected)
    for name, value in got.items():
        assert value.dtype == torch.float32
        SCHEDULES.check(f"{entry['name']}.{name}", value)


DDIM = load_golden("ddim_schedules")


@pytest.mark.parametrize("spacing", DDIM.card["options"]["methods"])
@pytest.mark.parametrize("entry", DDIM.card["options"]["schedules"], ids=lambda entry: entry["name"])
def test_sampling_times_match_original(entry: dict, spacing: str) -> None:
    schedule = from_golden(entry["params"])
    for count in DDIM.card["options"]["S"]:
        times = schedule.timesteps(count, spacing)
        here, there = schedule.sampling_levels(times)
        got = {"timesteps": times, "ddim_alphas": here, "ddim_alphas_prev": there}
        got["ddim_sqrt_one_minus_alphas"] = (1 - here).sqrt()
        for eta in DDIM.card["options"]["eta"]:
            got["ddim_sigmas"] = eta * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
            for name, value in got.items():
                DDIM.check(f"{entry['name']}.{spacing}.S{count}.eta{eta}.{name}", value)


@pytest.mark.parametrize("total", [7, 50, 1000])
def test_every_count_gives_that_many_steps(total: int) -> None:
    schedule = NoiseSchedule.linear(total)
    for count in range(1, total + 1):
        times = schedule.timesteps(count)
        assert len(times) == count
        assert times[0] >= 0
        assert times[-1] < total
        assert bool((times.diff() > 0).all())
        if total % count == 0 and count < total:
            assert torch.equal(times, torch.arange(0, total, total // count) + 1)
    for wrong in (0, total + 1):
        with pytest.raises(ValueError, match=f"got {wrong} .*1 to {total}"):
            schedule.timesteps(wrong)


def test_noising_matches_original() -> None:
    case = load_golden("ldm_crossattn_samplers")
    schedule = NoiseSchedule.linear(1000, 0.0015, 0.0195)
    z0, noise, t = case.tensors["in.z0"], case.tensors["in.noise"], case.tensors["in.t"]
    noisy = schedule.add_noise(z0, noise, t)
    assert error_of(noisy, case.tensors["out.q.q_sample"]) <= 1e-6
    back = schedule.x0_from_eps(case.tensors["out.q.q_sample"], noise, t)
    assert error_of(back, case.tensors["out.q.predict_start_from_noise"]) <= 1e-5


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_targets_invert(parameterization: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    schedule, t = NoiseSchedule.cosine(100), torch.tensor([1, 20, 50, 80, 95])
    noisy = schedule.add_noise(x0, noise, t)
    eps = schedule.to_eps(parameterization, schedule.target(parameterization, x0, noise, t), noisy, t)
    torch.testing.assert_close(eps, noise, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(schedule.x0_from_eps(noisy, eps, t), x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(schedule.eps_from_x0(noisy, x0, t), noise, rtol=1e-3, atol=1e-3)


def test_noisy_data_keep_unit_variance() -> None:
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 4, 1, 100, 100, generator=generator)
    noisy = NoiseSchedule.linear().add_noise(x0, noise, torch.tensor([0, 300, 600, 999]))
    torch.testing.assert_close(noisy.flatten(1).std(1), torch.ones(4), rtol=0.03, atol=0)


def test_is_named_by_its_ends() -> None:
    assert repr(NoiseSchedule.linear()) == "NoiseSchedule(T=1000, alphas_cumprod=0.9999 ... 0.0007334)"


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod.*\(0, 1\)"):
        NoiseSchedule(torch.tensor([0.5, 0.9]))
    with pytest.raises(ValueError, match=r"shape \[1, 2\], expected \[T\]"):
        NoiseSchedule(torch.tensor([[0.5, 0.4]]))
    with pytest.raises(ValueError, match="v_posterior is 1.5.*from 0 to 1"):
        replace(NoiseSchedule.linear(10), v_posterior=1.5)
    with pytest.raises(ValueError, match="beta_schedule is 'square'"):
        NoiseSchedule.from_name("square")
    schedule = NoiseSchedule.linear(10)
    x, t = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="parameterization is 'noise'"):
        schedule.target("noise", x, x, t)
    with pytest.raises(ValueError, match="spacing is 'even'"):
        schedule.timesteps(5, "even")
    with pytest.raises(ValueError, match="expected eps or x0"):
        schedule.lvlb_weights("v")


def test_min_snr_weights_bound_the_share_of_every_time() -> None:
    """The same error of x0 weighs min(SNR, gamma), whatever the network predicts."""
    schedule = NoiseSchedule.linear(50)
    generator = torch.Generator().manual_seed(0)
    x0, noise, error = (torch.randn(50, 3, 4, 4, generator=generator) for _ in range(3))
    t = torch.arange(50)
    x_t = schedule.add_noise(x0, noise, t)
    wrong = {"x0": x0 + error, "eps": schedule.eps_from_x0(x_t, x0 + error, t)}
    signal, sigma = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
    wrong["v"] = (signal.view(-1, 1, 1, 1) * wrong["eps"] - sigma.view(-1, 1, 1, 1) * wrong["x0"]).float()
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    expected = snr.clamp_max(5.0).float() * error.square().mean((1, 2, 3))
    for parameterization, output in wrong.items():
        squares = (output - schedule.target(parameterization, x0, noise, t)).square().mean((1, 2, 3))
        got = schedule.min_snr_weights(parameterization, 5.0) * squares
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=0)
    with pytest.raises(ValueError, match="min_snr_gamma.* 0"):
        schedule.min_snr_weights("eps", 0)


def test_trailing_times_start_at_the_last_one() -> None:
    schedule = NoiseSchedule.linear(1000)
    assert schedule.timesteps(5, "trailing").tolist() == [199, 399, 599, 799, 999]
    assert schedule.timesteps(3, "trailing").tolist() == [332, 666, 999]
    assert schedule.timesteps(1000, "trailing").tolist() == list(range(1000))


@pytest.mark.parametrize("count", [1, 5, 50, 400])
def test_karras_times_are_those_of_even_steps_in_the_seventh_root_of_noise(count: int) -> None:
    schedule = NoiseSchedule.linear(1000, 0.0015, 0.0195)
    times = schedule.timesteps(count, "karras")
    assert times[-1] == 999
    assert bool((times.diff() > 0).all())
    assert len(times) == count or count == 400 > len(times)
    if count == 50:
        roots = (1 / schedule.alphas_cumprod[times] - 1) ** (1 / 14)
        assert times[0] == 1
        torch.testing.assert_close(roots.diff()[10:], roots.diff()[10:].mean().expand(39), rtol=0.1, atol=0)


def test_zero_terminal_snr_keeps_the_start_and_loses_the_end() -> None:
    schedule = NoiseSchedule.linear(1000, 0.00085, 0.012)
    changed = replace(schedule, v_posterior=0.3).with_zero_terminal_snr("v")
    assert changed.v_posterior == 0.3
    assert float(changed.alphas_cumprod[0]) == pytest.approx(float(schedule.alphas_cumprod[0]), rel=1e-12)
    assert float(changed.alphas_cumprod[-1]) == 2.0**-24
    before, after = schedule.alphas_cumprod.sqrt(), changed.alphas_cumprod.sqrt()
    ratio = (after[1:] - after[0]) / (before[1:] - before[0])  # shifted and scaled: the same for all
    torch.testing.assert_close(ratio, ratio[-1].expand(999))
    with pytest.raises(ValueError, match="zero_terminal_snr.*eps.*v or x0"):
        schedule.with_zero_terminal_snr("eps")


def test_refuses_an_unknown_spacing() -> None:
    with pytest.raises(ValueError, match="spacing.*'even'.*uniform, trailing, karras, quad"):
        NoiseSchedule.linear(10).timesteps(5, "even")
