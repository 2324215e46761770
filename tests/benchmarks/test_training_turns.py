"""The clock of a step and the table of the turns, without a training."""

import io
import json

import pytest

from benchmarks.training import Clock, summarise


def test_a_clock_reports_each_step_with_the_time_for_its_next_batch() -> None:
    answers = io.StringIO()
    clock = Clock(io.StringIO("step\nstep\n"), answers)
    steps = 0
    while clock.wait():
        steps += 1
        for part in ("forward", "backward", "backward", "update"):
            clock.lap(part)
    ready, *reports = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert steps == 2 and ready == {} and len(reports) == 2
    assert all(set(report) == {"forward", "backward", "update", "loader", "cpu"} for report in reports)
    assert all(value >= 0 for report in reports for value in report.values())


def test_ways_are_compared_turn_by_turn() -> None:
    ours = [{"forward": 1.0, "loader": 0.5, "cpu": cpu} for cpu in (1.0, 2.0, 4.0)]
    before = [{"forward": 3.0, "loader": 0.5, "cpu": cpu} for cpu in (3.0, 4.0, 8.0)]
    rows = summarise({"ours": ours, "before": before})
    assert rows["ours"]["faster"] == 1.0 and rows["ours"]["wall"] == 1.5
    assert rows["before"]["faster"] == 2.0 and rows["before"]["faster_range"] == [2.0, 3.0]
    assert rows["before"]["wall"] == pytest.approx(3.5) and rows["before"]["cpu"] == 4.0
    assert summarise({"ours": ours[:1]})["ours"]["faster_range"] == [1.0, 1.0]
