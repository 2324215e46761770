"""The learning-rate factors against the original's."""

import pytest
from golden_cases import load_golden

from ldm.lr_scheduler import LambdaLinearScheduler
from ldm.util import instantiate_from_config

CASE = load_golden("lr_schedulers")


@pytest.mark.parametrize("schedule", CASE.card["options"]["scheds"], ids=lambda s: s["name"])
def test_matches_original(schedule: dict) -> None:
    expected = CASE.tensors[f"out.{schedule['name']}.mult"].tolist()
    steps = CASE.tensors[f"out.{schedule['name']}.steps"].tolist()
    factor = instantiate_from_config({"target": schedule["target"], "params": schedule["params"]})
    assert len(steps) == len(expected) > 7
    assert [factor(step) for step in steps] == pytest.approx(expected, rel=1e-9)
    assert factor.schedule(steps[2]) == factor(steps[2])


def test_last_cycle_goes_on_and_lists_agree() -> None:
    factor = LambdaLinearScheduler([0, 0], [0.0, 0.2], [1.0, 0.5], [0.0, 0.0], [10, 10])
    assert factor(20) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"one entry a cycle in every list, got lists of lengths \[1, 2\]"):
        LambdaLinearScheduler([0], [0.0, 0.2], [1.0, 0.5], [0.0, 0.0], [10, 10])
