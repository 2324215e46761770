"""The measure of the golden tests itself: what passes, what fails, and what is told at the end of a run."""

from __future__ import annotations

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
