"""Plots of the figures, and pictures that compare cases with the same seeds and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.measure import shown_key
from benchmarks.styles import picture
from ldm.checkpoint import read_weights
from ldm.pictures import from_uint8, save_png

Lines = Sequence[Mapping[str, Any]]
SPACES = ("pixels", "clip")
ROWS = 8
# The question of each picture, and its cases with the headings of their columns.
COMPARED: dict[str, tuple[str, dict[str, str]]] = {
    "retrieval": (
        "retrieval",
        {"neighbours scale 1": "scale 1", "neighbours scale 2": "scale 2", "plain": "plain", "plain-large": "large"},
    ),
    "concepts": ("concepts", {"held out, in database": "there", "held out, not in database": "absent"}),
    "concepts-trained": ("concepts", {"trained": "trained"}),
    "database_size": ("database_size", {f"{s}%": f"{s}%" for s in (1, 3, 10, 30, 100)}),
    "database_size-text": ("database_size", {f"{s}% text": f"{s}%" for s in (1, 3, 10, 30, 100)}),
}
RUN = "-0"  # pictures show the runs of the first seed


def compared(folder: Path, lines: Lines) -> list[Path]:
    """Writes the pictures that compare cases, and returns their files."""
    written = []
    for name, (question, cases) in COMPARED.items():
        columns, prompts = {}, [f"seed {seed}" for seed in range(ROWS)]
        for line in lines:
            key = shown_key(line["sha256"], line["settings"])
            file = folder / "shown" / f"{key}.safetensors"
            if line["question"] == question and line["case"] in cases and line["run"].endswith(RUN) and file.is_file():
                columns[cases[line["case"]]] = from_uint8(read_weights(file)["images"][:ROWS])
                prompts = (line.get("prompts") or prompts)[:ROWS]
        if columns:
            rows = min(map(len, columns.values()))
            ordered = {head: columns[head][:rows] for head in cases.values() if head in columns}
            file = folder / f"{name}.png"
            save_png(picture(ordered, [prompt[:14] for prompt in prompts[:rows]]), file)
            written.append(file)
    return written


def plots(folder: Path, lines: Lines) -> list[Path]:
    """Plots the figures, and returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    for name in ("top_m", "guidance", "database_size", "neighbours"):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
        if draw(name, axes, lines):
            for part in axes:
                part.grid(alpha=0.3, which="both")
                part.legend(fontsize=8)
            figure.savefig(folder / f"{name}-plot.png", dpi=110)
            written.append(folder / f"{name}-plot.png")
        plt.close(figure)
    return written


def draw(name: str, axes: Any, lines: Lines) -> bool:
    """Draws one plot on two axes; returns whether there was any data."""
    if name == "top_m":
        return precision_recall(axes, [("top-m", of(lines, "top_m"), "top_m")])
    if name == "guidance":
        unconditional = of(lines, "guidance")
        runs = {"neighbours-0": "p_uncond 0.1", "uncond3-0": "p_uncond 0.3"}
        parts = [
            (label, [line for line in unconditional if line["run"] == run], "scale") for run, label in runs.items()
        ]
        return precision_recall(axes, parts)
    if name == "database_size":
        unconditional = of(lines, name)
        drawn = [curve(axes[0], unconditional, "rows", f"{space}_fd_train", space) for space in SPACES]
        drawn += [curve(axes[1], unconditional, "rows", f"{space}_recall", space) for space in SPACES]
        axes[0].set(xlabel="share of the database", ylabel="Frechet distance", xscale="log", yscale="log")
        axes[1].set(xlabel="share of the database", ylabel="recall", xscale="log")
        return any(drawn)
    drawn, here = [], "in sampling, of a model of 4"
    curves = (("k_train", 1.0, "in training and sampling"), ("k_test", 1.0, here), ("k_test", 2.0, "the same, scale 2"))
    for question, scale, label in curves:
        of_scale = [line for line in of(lines, question) if line["settings"]["scale"] == scale]
        for place, space in enumerate(SPACES):
            drawn.append(curve(axes[place], of_scale, "k", f"{space}_fd_train", label))
            axes[place].set(xlabel="neighbours", ylabel=f"Frechet distance, {space}", xscale="log")
    return any(drawn)


def of(lines: Lines, question: str) -> list[Mapping[str, Any]]:
    """Returns the lines of a question whose images are unconditional."""
    return [line for line in lines if line["question"] == question and line["settings"]["ask"] == "popular"]


def curve(axes: Any, lines: Lines, setting: str, figure: str, label: str) -> bool:
    """Draws a figure over a setting; returns whether there was any data."""
    points = sorted((line["settings"][setting], line["figures"][figure]) for line in lines)
    if points:
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=label)
    return bool(points)


def precision_recall(axes: Any, parts: Sequence[tuple[str, Lines, str]]) -> bool:
    """Draws precision over recall, with a curve for each part and the value of a setting at each point."""
    drawn = False
    for axis, space in zip(axes, SPACES, strict=True):
        for label, lines, setting in parts:
            ordered = sorted(lines, key=lambda line: line["settings"][setting])
            points = [(line["figures"][f"{space}_recall"], line["figures"][f"{space}_precision"]) for line in ordered]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", markersize=3, label=label)
                for line, point in zip(ordered, points, strict=True):
                    axis.annotate(f"{line['settings'][setting]:g}", point, fontsize=7)
                drawn = True
        axis.set(xlabel="recall", ylabel=f"precision, {space}")
    return drawn
