"""What a build will take, said before it starts."""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rdm.retrieval.builder.reading import CHUNK
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)
_SAMPLE = 64  # pictures looked at
_METADATA = 600  # bytes of a row's metadata in memory
_METADATA_ON_DISK = 120  # the same compressed; about half of it is the hash
_AHEAD = 5  # chunks that each reader has ready or in work


@dataclass(frozen=True)
class Forecast:
    """What a build will take.

    Attributes:
        rows: of the database.
        disk: bytes it will have.
        memory: bytes that reading, embedding and writing need, beside what the process holds already.
        free: bytes free on the disk.
        available: bytes of memory available; None where the system does not say.
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


def forecast(
    path: Path,
    images: Any,
    items: Sequence[int],
    patches: Patches,
    embedder: Embedder,
    batch_size: int,
    workers: int,
    shard_rows: int,
) -> Forecast:
    """Returns what a build will take, from the policy and the sizes of a few pictures; warns if there is too little.

    Args:
        path: folder of the database.
        images: the data set.
        items: numbers of the pictures to embed.
        patches: what to take of each.
        embedder: makes the vectors.
        batch_size: patches embedded at once.
        workers: processes that read ahead.
        shard_rows: pictures per shard.
    """
    sizes = []
    places = np.random.default_rng(0).integers(0, len(items), _SAMPLE) if len(items) > _SAMPLE else range(len(items))
    for item in (items[int(place)] for place in places):
        try:
            with Image.open(io.BytesIO(images.read(item))) as picture:  # reads the header only
                sizes.append((len(patches.of(images.metadata(item)["id"], *picture.size)), *picture.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    each = sum(count for count, _, _ in sizes) / max(len(sizes), 1)
    largest = max((width * height for _, width, height in sizes), default=0)
    patch = 3 * images.size**2
    reading = max(workers, 1) * (_AHEAD * CHUNK * each * patch + 4 * 3 * largest)
    embedding = 4 * 4 * batch_size * patch  # pictures as float32, and what a network makes of them
    writing = 2 * min(shard_rows, len(items)) * each * (2 * embedder.dim + _METADATA)
    rows = round(each * len(items))
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    found = Forecast(
        rows,
        rows * (2 * embedder.dim + _METADATA_ON_DISK),
        round(reading + embedding + writing),
        shutil.disk_usage(there).free,
        available_memory(),
    )
    if found.disk > found.free:
        LOG.warning("the database needs %s, the disk has %s; name another path", _gb(found.disk), _gb(found.free))
    if found.available is not None and found.memory > found.available:
        LOG.warning(
            "building needs about %s of memory, %s are available; lower shard_rows, batch_size or workers",
            _gb(found.memory), _gb(found.available),
        )  # fmt: skip
    shared = shutil.disk_usage("/dev/shm").free if workers and os.path.isdir("/dev/shm") else None  # noqa: S108, PTH112
    if shared is not None and reading > shared:
        LOG.warning("readers need %s of shared memory, it has %s; lower workers", _gb(round(reading)), _gb(shared))
    return found


def available_memory() -> int | None:
    """Returns the bytes of memory a process can still take, None where the system does not say."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else 1024 * int(found)


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
