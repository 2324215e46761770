"""A reproducible pair of picture folders, and the figures of ``scripts/evaluate.py`` for it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ldm.util import evenly

ROOT = Path(__file__).parents[2]
SIDE = 64  # of the pictures in pixels
SEED = 0  # seed of the splits of the inception score, as in the report of the script


class Pair(NamedTuple):
    """Folders with the same number of pictures.

    Attributes:
        made: the pictures to evaluate.
        real: the reference.
        ordered: copies of the pictures to evaluate, named in the order in which the script splits them, so that a
            program that sorts files by name has the same splits.
        n: number of pictures in each folder.
    """

    made: Path
    real: Path
    ordered: Path
    n: int


def write_pair(folder: Path, made: Path, real: Path, n: int) -> Pair:
    """Writes n pictures of each of two Parquet files as PNG, spread evenly over the rows; replaces the old folders.

    They are scaled to ``SIDE``.

    Args:
        folder: parent of the new folders.
        made: file of the pictures to evaluate.
        real: file of the reference.
        n: number of pictures of each file.

    Raises:
        ValueError: a file has fewer pictures.
        FileNotFoundError: a file does not exist.
    """
    pair = Pair(folder / "made", folder / "real", folder / "ordered", n)
    for file, target in ((made, pair.made), (real, pair.real)):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        column = pq.read_table(file, columns=["image"])["image"]
        if len(column) < n:
            raise ValueError(f"got {len(column)} pictures in {file}, expected at least n={n}; ask for fewer")
        for row in evenly(len(column), n):
            with Image.open(io.BytesIO(column[row]["bytes"].as_py())) as picture:
                picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(target / f"{row:05d}.png")
    shutil.rmtree(pair.ordered, ignore_errors=True)
    pair.ordered.mkdir()
    names = sorted(pair.made.iterdir())
    for place, row in enumerate(np.random.default_rng(SEED).permutation(n)):
        shutil.copy(names[row], pair.ordered / f"{place:05d}.png")
    return pair


def pixels(folder: Path, n: int) -> Tensor:
    """Returns the first n pictures of a folder by name, ``[n, 3, H, W] uint8``."""
    files = sorted(folder.iterdir())[:n]
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


def script(pair: Pair, features: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs ``scripts/evaluate.py images`` on a pair on the CPU, without cached features, and returns its report.

    Args:
        pair: the pictures.
        features: names of the feature networks.
        folder: folder of the report.

    Raises:
        ValueError: the script failed; the message is the last line of its output.
    """
    shutil.rmtree(folder, ignore_errors=True)
    given = {"--reference": pair.real, "--kid_size": pair.n, "--cache": folder / "cache", "--outdir": folder}
    words = [str(word) for option in given.items() for word in option]
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "scripts/evaluate.py", "images", str(pair.made), *words, "--features", *features],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},  # the other programs use the CPU too
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        complaint = (done.stderr.splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise ValueError(f"scripts/evaluate.py: {complaint}")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
