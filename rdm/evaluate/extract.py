"""Pictures to features on disk: one pass over the pictures, a batch in memory, continued where it was ended.

What a network saw of a source lies in a folder named by the hashes of both:

``card.json``
    names and fingerprints, the number of pictures, how many are done, and when all are, the hash of each array.
``features.npy``, ``logits.npy``
    ``[n, D] float32``; the second for a classifier alone.

The card changes after the rows are on disk, so that rows it counts are whole; what is beyond them is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.files import atomic_path, check_hash, file_hash, read_json, write_json
from rdm.evaluate.features import FeatureNetwork

FORMAT = 1
BATCH = 32  # pictures at once; part of the key, for features depend on it in their last bits


class Source(Protocol):
    """Pictures in an order.

    Attributes:
        fingerprint: changes whenever a pixel may.
    """

    fingerprint: str

    def __len__(self) -> int:
        """The number of pictures."""

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """Yields pictures ``[B, 3, H, W]`` in [-1, 1] of 8 bits, from number ``start`` on, ``size`` at once."""


@dataclass(frozen=True)
class Extracted:
    """What a network saw of a source; arrays lie in files.

    Attributes:
        features: ``[n, D] float32``.
        logits: ``[n, classes] float32``, of a classifier.
    """

    features: Tensor
    logits: Tensor | None = None


def extract(source: Source, networks: Sequence[FeatureNetwork], cache: str | Path) -> list[Extracted]:
    """Returns what each network sees of all pictures of a source, which is gone through at most once.

    Args:
        source: the pictures.
        networks: the networks.
        cache: folder of all that was ever extracted.

    Raises:
        ValueError: features that are not finite, or an array on disk that is damaged.
    """
    stores = [Store(Path(cache), source, network) for network in networks]
    start, n = min(store.done for store in stores), len(source)
    if start < n:
        with tqdm(desc="features", total=n, initial=start, unit="picture") as bar:
            for images in source.batches(start, BATCH):
                for store in stores:
                    if store.done == start:
                        store.add(images)
                start += len(images)
                bar.update(len(images))
    return [store.open() for store in stores]


class Store:
    """Features of one source by one network on disk.

    Args:
        cache: folder of all.
        source: the pictures.
        network: the network.

    Attributes:
        done: pictures whose features are on disk; all, or whole batches.
    """

    def __init__(self, cache: Path, source: Source, network: FeatureNetwork) -> None:
        key = json.dumps([FORMAT, source.fingerprint, network.fingerprint, BATCH])
        self.folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.network, self.n = network, len(source)
        self.card: dict[str, Any] = {"source": source.fingerprint, **network.about(), "n": self.n, "done": 0}
        if (self.folder / "card.json").is_file():
            self.card = read_json(self.folder / "card.json", f"delete {self.folder}")

    @property
    def done(self) -> int:
        """See above."""
        return self.card["done"]

    def add(self, images: Tensor) -> None:
        """Sees pictures ``[B, 3, H, W]`` and writes what was seen."""
        features, logits = self.network.see(images)
        arrays = {"features": features} if logits is None else {"features": features, "logits": logits}
        for name, rows in arrays.items():
            found = rows.float().cpu().numpy()
            finite = np.isfinite(found).all(axis=1)
            if not finite.all():
                place = self.done + int(np.argmin(finite))
                raise ValueError(f"{name} of {self.network.name} are not finite for picture {place}; check its weights")
            self._write(self.folder / f"{name}.npy", found)
        self.card["done"] += len(images)
        if self.done == self.n:
            self.card["sha256"] = {name: file_hash(self.folder / f"{name}.npy") for name in arrays}
        write_json(self.folder / "card.json", self.card)

    def _write(self, file: Path, rows: np.ndarray) -> None:
        """Writes rows in their place of an array that is as long as it will be from the beginning."""
        if not self.done:
            with atomic_path(file) as temporary, temporary.open("wb") as stream:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (self.n, rows.shape[1])}
                np.lib.format.write_array_header_1_0(stream, header)
                stream.truncate(stream.tell() + self.n * rows[0].nbytes)
        with file.open("r+b") as stream:
            stream.seek(self.done * rows[0].nbytes - self.n * rows[0].nbytes, 2)
            stream.write(rows.tobytes())
            stream.flush()
            os.fsync(stream.fileno())

    def open(self) -> Extracted:
        """Returns the arrays, mapped into memory.

        Raises:
            ValueError: one is damaged.
        """
        found = {}
        for name, digest in self.card["sha256"].items():
            file = self.folder / f"{name}.npy"
            check_hash(file, digest, f"delete {self.folder}")
            found[name] = torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        return Extracted(**found)
