"""The losses of runs from their metrics files, and their curves as a picture."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from ldm.files import atomic_path

LOG = logging.getLogger(__name__)
WINDOW = 25  # number of logged steps that a point of the training curve averages, or a quarter of a shorter run
# The figures of validation that are drawn, each if the ones before are not there, and what the legend calls them.
HELD_OUT = {
    "val/loss_ema": "validation (EMA weights)",
    "val/loss": "validation",
    "val/rec_loss": "validation (reconstruction)",
}


def history(run: Path, column: str) -> dict[int, float]:
    """Returns the values of one column by step; for steps that a resumed run repeated, those of the later part.

    Raises:
        FileNotFoundError: the run folder has no metrics.
        ValueError: the metrics have no such column.
    """
    files = sorted(run.glob("metrics*.csv"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no metrics*.csv in {run}; expected a run folder of main.py")
    values: dict[int, float] = {}
    for file in files:
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        steps = [int(row["step"]) for row in rows]
        values = {step: value for step, value in values.items() if step < min(steps, default=0)}
        values |= {step: float(row[column]) for step, row in zip(steps, rows, strict=True) if row.get(column)}
    if not values:
        raise ValueError(f"no column '{column}' in the metrics of {run}")
    return values


def draw_losses(runs: Mapping[str, Path], output: Path) -> None:
    """Plots the smoothed training loss and a figure of validation, with a colour for each run.

    Args:
        runs: run folders by the name that the legend gives them; without one, the legend names the curves alone.
        output: the PNG file.

    Raises:
        FileNotFoundError: a run folder has no metrics.
        ValueError: a run has logged no loss of training.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes, lowest = figure.subplots(), math.inf
    for i, (label, run) in enumerate(runs.items()):
        name = f"{label}, " if label else ""
        train = sorted(history(run, "train/loss").items())
        window = min(WINDOW, max(1, len(train) // 4))
        mean = [sum(v for _, v in train[j - window : j]) / window for j in range(window, len(train) + 1)]
        axes.plot([step for step, _ in train[window - 1 :]], mean, f"C{i}", alpha=0.5, label=f"{name}training")
        lowest = min(lowest, *mean)
        for column, what in HELD_OUT.items():
            with contextlib.suppress(ValueError):
                held_out = sorted(history(run, column).items())
                axes.plot(*zip(*held_out, strict=True), f"C{i}o-", markersize=3, label=f"{name}{what}")
                lowest = min(lowest, *(value for _, value in held_out))
                break
    axes.set(xlabel="step", ylabel="loss", yscale="log" if lowest > 0 else "linear")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_run(run: Path) -> None:
    """Draws ``losses.png`` in a run folder, if matplotlib is installed and the run has logged a loss of training."""
    if find_spec("matplotlib") is None:
        LOG.info("no picture of the losses, which needs matplotlib: pip install matplotlib")
        return
    try:
        draw_losses({"": run}, run / "losses.png")
    except (FileNotFoundError, ValueError) as error:
        LOG.info("no picture of the losses: %s", error)
        return
    LOG.info("wrote %s", run / "losses.png")
