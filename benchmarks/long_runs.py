"""Memory and open files of long runs: training, sampling, appends and searches, each in a process of its own (Linux).

    python -m benchmarks.long_runs [--steps 10000] [--images 2000] [--appends 100] [--searches 10000] [--output PNG]

The work is that of the benchmark of kills: tiny pictures and tiny models, so that what stays behind shows beside what
is needed. What counts is the memory that belongs to the process alone; pages of mapped files come and go with the
system.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.world import write_pictures, write_world

WARM_UP, SPAN = 0.2, 0.1  # parts of the work: what is not looked at, and what each figure is the median of
POLL = 0.02  # seconds
BEGUN = "begun"  # a file that is there while the work goes on; of scripts, what they write first
EACH = 2  # pictures of an append


@dataclass(frozen=True)
class Curve:
    """What a process took, at even times.

    Attributes:
        seconds: the times since its work began, after imports and preparation.
        megabytes: memory that is its own.
        files: numbers of open files.
    """

    seconds: list[float]
    megabytes: list[float]
    files: list[int]

    def ends(self, values: list[float] | list[int]) -> tuple[float, float]:
        """Returns the medians of values after the warm-up and at the end."""
        count = len(values)
        first, span = round(WARM_UP * count), max(1, round(SPAN * count))
        return statistics.median(values[first : first + span]), statistics.median(values[-span:])


def train(folder: Path, number: int) -> None:
    """Trains a retrieval-augmented model for so many steps."""
    trainer = [f"lightning.trainer.max_steps={number}", "lightning.trainer.val_check_interval=500"]
    words = ["lightning.trainer.check_val_every_n_epoch=null", "lightning.checkpoint.every_n_train_steps=500"]
    config = str(folder / "world/rdm.yaml")
    _run("main.py", "--base", config, "-t", "-p", str(folder / "work/run"), *trainer, *words)


def sample(folder: Path, number: int) -> None:
    """Samples so many images with the model that was trained, by the script."""
    _run("scripts/export_checkpoint.py", str(folder / "work/run"), "--output", str(folder / "work/model"))
    words = ["--ckpt", str(folder / "work/model"), "--prompt", "a picture", "--n_samples", str(number)]
    _run("scripts/txt2img.py", *words, "--batch_size", "4", "--steps", "2", "--outdir", str(folder / "work/images"))


def append(folder: Path, number: int) -> None:
    """Appends pictures to a database so many times."""
    from ldm.config import read_config
    from rdm.retrieval.builder.build import build_database
    from rdm.retrieval.config import load_embedder
    from rdm.retrieval.upkeep.append import append_pictures

    embedder = load_embedder(read_config([folder / "world/database.yaml"])["embedder"])
    path = folder / "work/appended"
    options: dict[str, Any] = {"batch_size": 4, "progress": False}
    build_database(path, write_pictures(folder / "work/0", EACH, 100), embedder, **options)
    (folder / BEGUN).touch()
    for each in range(1, number + 1):
        append_pictures(path, write_pictures(folder / f"work/{each}", EACH, 100 + each), embedder, **options)
    (folder / BEGUN).unlink()


def search(folder: Path, number: int) -> None:
    """Searches an index so many times, one vector at a time."""
    from rdm.retrieval.database.rows import RetrievalDatabase
    from rdm.retrieval.index.faiss_index import NeighbourIndex

    index = NeighbourIndex.load(RetrievalDatabase.open(folder / "work/db"))
    rng = np.random.default_rng(0)
    (folder / BEGUN).touch()
    for _ in range(number):
        index.search(rng.standard_normal((1, index.database.dim), dtype=np.float32), 4)
    (folder / BEGUN).unlink()


KINDS: dict[str, Callable[[Path, int], None]] = {
    "steps": train,
    "images": sample,
    "appends": append,
    "searches": search,
}
SIGNS = {"steps": "work/run/metrics.csv", "images": "work/images", "appends": BEGUN, "searches": BEGUN}
NUMBERS = {"steps": 10_000, "images": 2000, "appends": 100, "searches": 10_000}


def _run(script: str, *words: str) -> None:
    """Runs a script in this process."""
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def watched(words: list[str], log: Path, sign: Path) -> Curve:
    """Runs a command to its end and returns what it took while a file or folder is there.

    Raises:
        RuntimeError: it fails.
    """
    curve, begin = Curve([], [], []), 0.0
    sign.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)  # noqa: S603 (our own)
        while process.poll() is None:
            time.sleep(POLL)
            if not sign.exists():
                continue
            begin = begin or time.perf_counter()
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
                files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            except (OSError, StopIteration):  # it has just ended
                break
            curve.seconds.append(time.perf_counter() - begin)
            curve.megabytes.append(kilobytes / 1000)
            curve.files.append(files)
    if process.wait():
        raise RuntimeError(f"{' '.join(words)} failed: {log.read_text(errors='replace').strip()[-300:]}")
    return curve


def draw(curves: dict[str, Curve], file: Path) -> None:
    """Draws the memory of each run against its time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 2.8), layout="constrained")
    for axis, (name, curve) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        axis.plot(curve.seconds, curve.megabytes, linewidth=1)
        axis.axvline(WARM_UP * curve.seconds[-1], color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=name, xlabel="seconds", ylim=(0, 1.15 * max(curve.megabytes)))
    np.atleast_1d(axes)[0].set_ylabel("memory of its own, MB")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs all kinds and prints a table, or one kind in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default: {number}")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/long-runs"), help="must not exist; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=Path("logs/long-runs.png"), help="default: %(default)s")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        KINDS[args.kind](args.folder, getattr(args, args.kind))
        return
    if args.folder.exists():
        parser.error(f"--folder: {args.folder} exists, expected a new folder; delete it")
    write_world(args.folder / "world", args.folder / "work")
    curves = {}
    print("| run | seconds | memory after warm-up, MB | at the end | growth | open files |\n|---|---|---|---|---|---|")
    for kind in KINDS:
        number = getattr(args, kind)
        words = [sys.executable, "-m", "benchmarks.long_runs", "--kind", kind, f"--{kind}", str(number)]
        curve = watched([*words, "--folder", str(args.folder)], args.folder / f"{kind}.log", args.folder / SIGNS[kind])
        curves[f"{number:,} {kind}"] = curve
        (first, last), files = curve.ends(curve.megabytes), curve.ends(curve.files)
        print(
            f"| {number:,} {kind} | {curve.seconds[-1]:.0f} | {first:.1f} | {last:.1f} | {last / first - 1:+.1%} "
            f"| {files[0]:.0f}, {files[1]:.0f} |",
            flush=True,
        )
        (args.folder / f"{kind}.json").write_text(json.dumps(vars(curve)))
    draw(curves, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
