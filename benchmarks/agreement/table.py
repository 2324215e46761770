"""The table of the script's figures and those of other programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.agreement.theirs import Figure

BOUND = 1e-3


class Row(NamedTuple):
    """One figure by two programs.

    Attributes:
        metric: our name of the figure.
        features: description of the features.
        ours: the value of the script.
        whose: the other program.
        theirs: the value of the other program.
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
        """The difference relative to the other program's figure; 0 if both are 0."""
        return self.absolute / abs(self.theirs) if self.theirs else (float("inf") if self.ours else 0.0)

    @property
    def within(self) -> bool:
        """Whether the relative difference is within the bound; false if a figure is NaN."""
        return self.relative <= BOUND


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of a report in a flat dictionary with names such as ``kernel_distance mean``."""
    values: dict[str, float] = {}
    for name, value in figures.items():
        parts = value if isinstance(value, dict) else {"": value}
        values |= {f"{name} {part}".strip(): number for part, number in parts.items()}
    return values


def compared(features: str, ours: Mapping[str, Any], theirs: Iterable[Figure]) -> list[Row]:
    """Returns a row for each figure that both the script and another program have.

    Args:
        features: description of the features.
        ours: figures of the script's report.
        theirs: figures of other programs.
    """
    values = flat(ours)
    return [Row(it.metric, features, values[it.metric], it.whose, it.value) for it in theirs if it.metric in values]


def table(rows: Iterable[Row]) -> str:
    """Returns a Markdown table."""
    lines = ["| metric | features | ours | theirs | whose | difference | relative | within 1e-3 |", "|---" * 8 + "|"]
    for row in rows:
        numbers = f"{row.ours:.6g} | {row.theirs:.6g} | {row.whose} | {row.absolute:.1e} | {row.relative:.1e}"
        lines.append(f"| {row.metric} | {row.features} | {numbers} | {'yes' if row.within else '**NO**'} |")
    return "\n".join(lines)
