"""Figures of the script and of others side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.agreement.theirs import Figure

BOUND = 1e-3


class Row(NamedTuple):
    """One figure, twice.

    Attributes:
        metric: our name of it.
        features: in which it is measured.
        ours: of the script.
        whose: the other program.
        theirs: of the other program.
    """

    metric: str
    features: str
    ours: float
    whose: str
    theirs: float

    @property
    def absolute(self) -> float:
        """The difference."""
        return abs(self.ours - self.theirs)

    @property
    def relative(self) -> float:
        """The difference in parts of their figure; 0 where both are 0."""
        return self.absolute / abs(self.theirs) if self.theirs else (float("inf") if self.ours else 0.0)

    @property
    def within(self) -> bool:
        """Whether the difference is within the bound, in parts of their figure; not so where one is no number."""
        return self.relative <= BOUND


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of a report of the script by one name each: ``kernel_distance mean``."""
    every: dict[str, float] = {}
    for name, value in figures.items():
        parts = value if isinstance(value, dict) else {"": value}
        every |= {f"{name} {part}".strip(): number for part, number in parts.items()}
    return every


def compared(features: str, ours: Mapping[str, Any], theirs: Iterable[Figure]) -> list[Row]:
    """Returns a row for each figure of others that the script has as well.

    Args:
        features: in which figures are measured, in words.
        ours: figures of the script's report.
        theirs: of others.
    """
    own = flat(ours)
    return [Row(it.metric, features, own[it.metric], it.whose, it.value) for it in theirs if it.metric in own]


def table(rows: Iterable[Row]) -> str:
    """Returns a Markdown table."""
    lines = ["| metric | features | ours | theirs | whose | difference | relative | within 1e-3 |", "|---" * 8 + "|"]
    for row in rows:
        numbers = f"{row.ours:.6g} | {row.theirs:.6g} | {row.whose} | {row.absolute:.1e} | {row.relative:.1e}"
        lines.append(f"| {row.metric} | {row.features} | {numbers} | {'yes' if row.within else '**NO**'} |")
    return "\n".join(lines)
