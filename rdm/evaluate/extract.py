"""Pictures to features on disk: one pass over the pictures, a batch in memory, continued where it was ended.

What a network saw of a source lies in a folder named by the hashes of both:

``card.json``
    names and fingerprints, the number of pictures and the hash of each array.
``features.npy``, ``logits.npy``
    ``[n, D] float32``; the second for a classifier alone.

Until all pictures were seen, the arrays are a :class:`ldm.table.ResumableTable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.files import check_hash, read_json
from ldm.table import ResumableTable
from rdm.evaluate.features import FeatureNetwork

FORMAT = 1
CARD = "card.json"
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
        self.network = network
        about = {"source": source.fingerprint, **network.about(), "n": len(source)}
        file = self.folder / CARD
        self.card: dict[str, Any] = read_json(file, f"delete {self.folder}") if file.is_file() else {}
        if "sha256" not in self.card:  # an unfinished one of an earlier version has no hashes
            self.card = {**about, "done": len(source)}
            self.table: ResumableTable | None = ResumableTable(self.folder, len(source), about)
        else:
            self.table = None

    @property
    def done(self) -> int:
        """See above."""
        return self.card["done"] if self.table is None else self.table.done

    def add(self, images: Tensor) -> None:
        """Sees pictures ``[B, 3, H, W]`` and writes what was seen.

        Raises:
            ValueError: the network gave a number that is not finite, or all pictures were seen before.
        """
        if self.table is None:
            raise ValueError(f"{self.folder} holds all {self.done} pictures, got {len(images)} more")
        features, logits = self.network.see(images)
        arrays = {"features": features} if logits is None else {"features": features, "logits": logits}
        lines = {name: values.float().cpu().numpy() for name, values in arrays.items()}
        for name, values in lines.items():
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                place = self.done + int(np.argmin(finite))
                raise ValueError(f"{name} of {self.network.name} are not finite for picture {place}; check its weights")
        self.table.append(**lines)

    def open(self) -> Extracted:
        """Returns the arrays, mapped into memory, of all pictures.

        Raises:
            ValueError: one is damaged, or pictures are left to be seen.
        """
        if self.table is not None:
            self.card["sha256"] = self.table.hashes()
            self.table.finish(CARD, self.card)
            self.table = None
        arrays = {}
        for name, digest in self.card["sha256"].items():
            file = self.folder / f"{name}.npy"
            check_hash(file, digest, f"delete {self.folder}")
            arrays[name] = torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        return Extracted(**arrays)
