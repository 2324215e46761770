"""The learning-rate factors against the original's."""

import pytest
import torch
from golden_cases import load_golden

from ldm.lr_scheduler import LambdaLinearScheduler, StepSchedule
from ldm.util import instantiate_from_config

CASE = load_golden("lr_schedulers")


@pytest.mark.parametrize("schedule", CASE.card["options"]["scheds"], ids=lambda s: s["name"])
def test_matches_original(schedule: dict) -> None:
    steps = CASE.tensors[f"out.{schedule['name']}.steps"].tolist()
    factor = instantiate_from_config({"target": schedule["target"], "params": schedule["params"]})
    assert len(steps) > 7
    CASE.check(f"{schedule['name']}.mult", torch.tensor([factor(step) for step in steps], dtype=torch.float64))
    assert factor.schedule(steps[2]) == factor(steps[2])


def test_last_cycle_goes_on_and_lists_agree() -> None:
    factor = LambdaLinearScheduler([0, 0], [0.0, 0.2], [1.0, 0.5], [0.0, 0.0], [10, 10])
    assert factor(20) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        LambdaLinearScheduler([0], [0.0, 0.2], [1.0, 0.5], [0.0, 0.0], [10, 10])


def test_a_schedule_is_resumed_at_its_step_with_the_rates_and_factors_of_now() -> None:
    def schedule(rate: float, length: int) -> StepSchedule:
        factor = LambdaLinearScheduler([0], [0.0], [1.0], [0.0], [length])
        return StepSchedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate), factor)

    def rates(run: StepSchedule, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            run.optimizer.step()
            run.step()
            found.append(run.get_last_lr()[0])
        return found

    whole, first, same, other = schedule(1.0, 10), schedule(1.0, 10), schedule(1.0, 10), schedule(2.0, 20)
    expected = rates(whole, 6)
    rates(first, 3)
    for resumed in (same, other):
        resumed.optimizer.load_state_dict(first.optimizer.state_dict())
        resumed.load_state_dict(first.state_dict())
    assert same.optimizer.param_groups[0]["lr"] == pytest.approx(1 - 3 / 10)
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(2 * (1 - 3 / 20))  # already in the first step
    assert rates(same, 3) == expected[3:]
    assert rates(other, 3) == pytest.approx([2 * (1 - step / 20) for step in (4, 5, 6)])
