"""Plots training and validation losses: `python -m benchmarks.curves RUN [RUN ...] --output losses.png`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

WINDOW = 25  # number of logged steps that a point of the training curve averages


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


def draw(runs: dict[str, Path], output: Path) -> None:
    """Plots the smoothed training loss and the validation loss of the EMA weights, with a colour for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for i, (label, run) in enumerate(runs.items()):
        train = sorted(history(run, "train/loss").items())
        mean = [sum(v for _, v in train[j - WINDOW : j]) / WINDOW for j in range(WINDOW, len(train) + 1)]
        axes.plot([step for step, _ in train[WINDOW - 1 :]], mean, f"C{i}", alpha=0.4, label=f"{label}, training")
        held_out = sorted(history(run, "val/loss_ema").items())
        axes.plot(*zip(*held_out, strict=True), f"C{i}o-", markersize=3, label=f"{label}, validation (EMA weights)")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(output, dpi=110)


def main() -> None:
    """Plots the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, or LABEL=FOLDER for another label in the plot"
    )
    parser.add_argument("--output", default="losses.png", type=Path, help="PNG file to write")
    args = parser.parse_args()
    named = [text.rpartition("=") for text in args.runs]
    draw({label or Path(run).name: Path(run) for label, _, run in named}, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
