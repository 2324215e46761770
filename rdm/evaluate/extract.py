"""Extracts features of pictures to disk, batch by batch; an interrupted extraction continues where it stopped.

The features of a source by a network lie in a folder that is named after the hashes of both:

``card.json``
    names and fingerprints, the number of pictures, and the hash of each array.
``features.npy``, ``logits.npy``
    ``[n, D] float32``; only classifiers have logits.

Until all pictures are processed, the arrays are a :class:`ldm.table.ResumableTable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.files import check_hash, read_json
from ldm.locks import building
from ldm.stopping import going_on
from ldm.table import KEPT, ResumableTable
from rdm.evaluate.features import FeatureNetwork

FORMAT = 1
CARD = "card.json"
BATCH = 32  # pictures in a batch; part of the key, because the last bits of features depend on it


class Source(Protocol):
    """An ordered set of pictures.

    Attributes:
        fingerprint: a hash that changes if any pixel changes.
    """

    fingerprint: str

    def __len__(self) -> int:
        """The number of pictures."""

    def batches(self, start: int, size: int) -> Iterator[Tensor]:
        """Yields batches of ``size`` pictures ``[B, 3, H, W]`` in [-1, 1] of 8 bits, from number ``start`` on."""


@dataclass(frozen=True)
class Extracted:
    """The features of a source by a network; the arrays are mapped from files.

    Attributes:
        features: ``[n, D] float32``.
        logits: ``[n, classes] float32`` of a classifier, else None.
    """

    features: Tensor
    logits: Tensor | None = None


def extract(source: Source, networks: Sequence[FeatureNetwork], cache: str | Path) -> list[Extracted]:
    """Returns the features of all pictures of a source by each network, in at most one pass over the source.

    Of several processes that want the same features, one computes them and the others wait for it.

    Args:
        source: the pictures.
        networks: the networks.
        cache: folder that keeps the features of all extractions.

    Raises:
        ValueError: features are not finite, or an array on disk is damaged.
    """
    with ExitStack() as locks:
        folders = {folder_of(Path(cache), source, network) for network in networks}
        for folder in sorted(folders):  # in one order for all processes, so that none waits for one that waits for it
            if "sha256" not in _card(folder):
                locks.enter_context(building(folder))
        locks.enter_context(going_on(KEPT))
        return _extract([Store(Path(cache), source, network) for network in networks], source)


def folder_of(cache: Path, source: Source, network: FeatureNetwork) -> Path:
    """Returns the folder of the features of a source by a network."""
    key = json.dumps([FORMAT, source.fingerprint, network.fingerprint, BATCH])
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def _card(folder: Path) -> dict[str, Any]:
    """Returns the card of an extraction; it is empty, or has no hashes, if the extraction is unfinished."""
    return read_json(folder / CARD, f"delete {folder}") if (folder / CARD).is_file() else {}


def _extract(stores: Sequence[Store], source: Source) -> list[Extracted]:
    """Completes the features of all stores and returns them."""
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
    """The features of one source by one network, on disk.

    Args:
        cache: folder of all extractions.
        source: the pictures.
        network: the network.

    Attributes:
        done: number of pictures whose features are on disk.
    """

    def __init__(self, cache: Path, source: Source, network: FeatureNetwork) -> None:
        self.folder = folder_of(cache, source, network)
        self.network = network
        about = {"source": source.fingerprint, **network.about(), "n": len(source)}
        self.card = _card(self.folder)
        if "sha256" not in self.card:  # an unfinished extraction of an earlier version has no hashes
            self.card = {**about, "done": len(source)}
            self.table: ResumableTable | None = ResumableTable(self.folder, len(source), about)
        else:
            self.table = None

    @property
    def done(self) -> int:
        """The number of pictures whose features are on disk."""
        return self.card["done"] if self.table is None else self.table.done

    def add(self, images: Tensor) -> None:
        """Computes the features of pictures ``[B, 3, H, W]`` and writes them.

        Raises:
            ValueError: a feature is not finite, or the features of all pictures are already there.
        """
        if self.table is None:
            raise ValueError(f"{self.folder} holds all {self.done} pictures, got {len(images)} more")
        features, logits = self.network.features(images)
        arrays = {"features": features} if logits is None else {"features": features, "logits": logits}
        lines = {name: values.float().cpu().numpy() for name, values in arrays.items()}
        for name, values in lines.items():
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                place = self.done + int(np.argmin(finite))
                raise ValueError(f"{name} of {self.network.name} are not finite for picture {place}; check its weights")
        self.table.append(**lines)

    def open(self) -> Extracted:
        """Returns the arrays of all pictures, mapped into memory.

        Raises:
            ValueError: an array is damaged, or some pictures have no features yet.
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
