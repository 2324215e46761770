"""The rows, disk space and memory that a build will need, estimated before it starts."""

from __future__ import annotations

import io
import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.decode import sides
from rdm.retrieval.builder.read_ahead import CHUNK
from rdm.retrieval.builder.work import Build

LOG = logging.getLogger(__name__)
_SAMPLE = 64  # pictures whose sizes are read
_METADATA = 600  # bytes of a row's metadata in memory
_METADATA_ON_DISK = 120  # the same compressed; about half of it is the hash
_AHEAD = 5  # chunks that each reader holds, ready or being read


@dataclass(frozen=True)
class Forecast:
    """What a build will need.

    Attributes:
        rows: number of rows of the database.
        disk: bytes of the database's files.
        memory: bytes that reading, embedding and writing need in addition to what the process uses already.
        free: bytes free on the disk.
        available: bytes of memory available; None if the system does not tell.
    """

    rows: int
    disk: int
    memory: int
    free: int
    available: int | None

    def __str__(self) -> str:
        available = "" if self.available is None else f" of {_gb(self.available)} available"
        return (
            f"about {self.rows:,} rows, {_gb(self.disk)} of {_gb(self.free)} free on the disk, "
            f"{_gb(self.memory)} of memory{available}"
        )


def forecast(build: Build, workers: int) -> Forecast:
    """Estimates what a build will need from the policy and the sizes of a few pictures; warns if that is too much.

    Args:
        build: the build, before it starts.
        workers: processes that read ahead.
    """
    images, items, width = build.images, build.items, build.embedder.dim
    sizes = []
    places = np.random.default_rng(0).integers(0, len(items), _SAMPLE) if len(items) > _SAMPLE else range(len(items))
    for item in (items[int(place)] for place in places):
        try:
            with Image.open(io.BytesIO(images.read(item))) as picture:  # reads the header only
                boxes = build.patches.of(images.metadata(item)["id"], *picture.size)
                sizes.append((len(boxes), *picture.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    each = sum(count for count, _, _ in sizes) / max(len(sizes), 1)
    largest = max((columns * lines for _, columns, lines in sizes), default=0)
    patch = 3 * math.prod(sides(images.size))
    reading = max(workers, 1) * (_AHEAD * CHUNK * each * patch + 4 * 3 * largest)
    embedding = 4 * 4 * build.work.batch_size * patch  # pictures as float32, and what a network makes of them
    writing = 2 * min(build.plan.shard_rows, len(items)) * each * (2 * width + _METADATA)
    rows = round(each * len(items))
    folder = next(folder for folder in (build.path, *build.path.absolute().parents) if folder.is_dir())
    needed = Forecast(
        rows,
        rows * (2 * width + _METADATA_ON_DISK),
        round(reading + embedding + writing),
        shutil.disk_usage(folder).free,
        available_memory(),
    )
    if needed.disk > needed.free:
        LOG.warning(
            "the database needs %s of disk space, got %s; name another path", _gb(needed.disk), _gb(needed.free)
        )
    if needed.available is not None and needed.memory > needed.available:
        LOG.warning(
            "the build needs about %s of memory, got %s; lower shard_rows, batch_size or workers",
            _gb(needed.memory), _gb(needed.available),
        )  # fmt: skip
    shared = shutil.disk_usage("/dev/shm").free if workers and os.path.isdir("/dev/shm") else None  # noqa: S108, PTH112
    if shared is not None and reading > shared:
        LOG.warning(
            "the reading processes need %s of shared memory, got %s; lower workers", _gb(round(reading)), _gb(shared)
        )
    return needed


def available_memory() -> int | None:
    """Returns the bytes of memory that a process can still use; None if the system does not tell."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else 1024 * int(kilobytes)


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
