"""The measure of the golden tests itself: what passes, what fails, and what is told at the end of a run."""

from __future__ import annotations

import json
import math

import golden_cases
import pytest
import torch
from golden_cases import GoldenCase, summary


@pytest.fixture(autouse=True)
def nothing_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_cases, "WORST", {})
    monkeypatch.setattr(golden_cases, "LAYOUTS_BUILT", set())


def case(name: str, **tolerance: float | bool) -> GoldenCase:
    expected = {"out.y": torch.tensor([2.0, 0.1]), "out.n": torch.tensor([3, 4])}
    return GoldenCase(name, {"tolerance": tolerance}, expected)


def test_errors_are_measured_as_the_case_states_and_the_worst_is_told() -> None:
    assert summary() == ""
    by_kind, near = case("by_kind", rtol_of_max_forward=0.1, rtol_of_max_grad=0.2), torch.tensor([2.0, 0.25])
    by_kind.check("y", near)
    by_kind.check("n", torch.tensor([3, 4]))
    assert golden_cases.WORST["by_kind"] == (pytest.approx(0.75), "y")
    assert summary().endswith("golden cases compared, worst error 0.75 of its tolerance (by_kind: y)")
    case("one", rtol_of_max=0.3).check("y", near)
    case("exact", exact=True).check("y", torch.tensor([2.0, 0.1]))
    golden_cases.LAYOUTS_BUILT.add("kl-f4")
    assert summary().startswith("3 of ") and summary().endswith("(by_kind: y), 1 released layouts built")
    with pytest.raises(AssertionError, match="each: the error of y is 15 of"):
        case("each", elementwise_rel=0.1).check("y", near)
    assert "(each: y)" in summary()


def test_what_several_processes_compared_is_told_as_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for value, layout in ((2.1, "kl-f4"), (2.2, "kl-f8"), (2.0, "kl-f4")):
        monkeypatch.setattr(golden_cases, "WORST", {})
        monkeypatch.setattr(golden_cases, "LAYOUTS_BUILT", {layout})
        case(f"by {layout}", rtol_of_max=0.4).check("y", torch.tensor([value, 0.1]))
        found.append(json.loads(json.dumps(golden_cases.compared())))
    for each in (*found[:2], {}):
        golden_cases.add(each)
    assert golden_cases.compared() == {
        "worst": {"by kl-f4": (pytest.approx(0.125), "y"), "by kl-f8": (pytest.approx(0.25), "y")},
        "layouts": ["kl-f4", "kl-f8"],
    }
    assert summary().startswith("2 of ") and summary().endswith("(by kl-f8: y), 2 released layouts built")


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("y", torch.tensor([2.0, 0.35])),
        ("y", torch.tensor([2.0, math.nan])),
        ("y", torch.tensor([[2.0, 0.1]])),
        ("n", torch.tensor([3, 5])),
        ("n", torch.tensor([3.0, 4.0])),
    ],
)
def test_what_is_not_the_same_fails(name: str, got: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        case("a", rtol_of_max_forward=0.1).check(name, got)
