"""Reads pictures ahead in other processes and cuts them into batches of patches, so that the embedder does not wait."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.decode import UnknownRangeError, open_picture, sides
from ldm.data.left_out import say_pages
from rdm.retrieval.patches.identity import picture_hash
from rdm.retrieval.patches.policy import Patches, cut

CHUNK = 32  # pictures that a reading process returns at once


@dataclass
class Chunk:
    """The patches of some consecutive pictures of a source.

    Attributes:
        pixels: ``[P, H, W, 3] uint8``, their patches.
        entries: the metadata row of each patch.
        faults: ``item``, ``uri`` and ``reason`` of each picture that cannot be read.
        without: number of pictures that the policy takes no patch of.
        pictures: number of pictures.
    """

    pixels: Tensor
    entries: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    without: int = 0
    pictures: int = 0


class ChunkReader(Dataset[Chunk]):
    """The chunks of a data set, by number.

    Args:
        images: a data set of ``ldm.data``: ``read``, ``metadata`` and ``uri`` of a picture, ``size`` and
            ``value_range``.
        patches: the policy of patches.
        chunks: numbers of the pictures in each chunk.
    """

    def __init__(self, images: Any, patches: Patches, chunks: Sequence[Sequence[int]]) -> None:
        self.images, self.patches, self.chunks = images, patches, chunks
        self.said: set[str] = set()

    def __len__(self) -> int:
        """Returns the number of chunks."""
        return len(self.chunks)

    def __getitem__(self, number: int) -> Chunk:
        """Returns one chunk; pictures that cannot be read are listed in its faults."""
        pixels: list[np.ndarray] = []
        chunk = Chunk(
            torch.empty((0, *sides(self.images.size), 3), dtype=torch.uint8), pictures=len(self.chunks[number])
        )
        for item in self.chunks[number]:
            try:
                rows = self._rows(item)
            except UnknownRangeError as error:
                raise ValueError(f"{self.images.uri(item)} is {error}") from error
            except (OSError, ValueError) as error:
                reason = re.sub(r" (object )?at 0x[0-9a-f]+", "", str(error))  # which would differ from run to run
                chunk.faults.append({"item": item, "uri": self.images.uri(item), "reason": reason})
                continue
            chunk.without += not rows
            pixels += [patch for patch, _ in rows]
            chunk.entries += [entry for _, entry in rows]
        if pixels:
            chunk.pixels = torch.from_numpy(np.stack(pixels))
        return chunk

    def _rows(self, item: int) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Returns the patch and the metadata of each row that a picture gives."""
        texts = dict(self.images.metadata(item))
        image_id = texts.pop("id")
        data = self.images.read(item)
        picture = open_picture(data, self.images.value_range)
        say_pages(data, self.images.uri(item), self.said)
        rows = []
        for box, class_id in self.patches.of(image_id, picture.width, picture.height):
            patch = cut(picture, box, self.images.size)
            label = {"class_id": class_id} if class_id else {}
            sides = box._asdict()
            rows.append(
                (patch, {**texts, **label, "image_id": image_id, "item": item, **sides, "sha256": picture_hash(patch)})
            )
        return rows


def chunks_of(items: Sequence[int]) -> list[Sequence[int]]:
    """Splits the numbers of pictures into chunks; the last may be smaller."""
    return [items[first : first + CHUNK] for first in range(0, len(items), CHUNK)]


def read_chunks(images: Any, patches: Patches, chunks: Sequence[Sequence[int]], workers: int) -> Iterator[Chunk]:
    """Yields the chunks in order.

    Args:
        images: the data set.
        patches: the policy of patches.
        chunks: numbers of the pictures in each chunk.
        workers: processes that read ahead; with 0 this process reads each chunk when it is needed.

    Raises:
        ValueError: a reading process died.
    """
    loader = DataLoader(
        ChunkReader(images, patches, chunks),
        batch_size=None,  # a chunk is a batch
        num_workers=workers,
        collate_fn=_unchanged,  # type: ignore[arg-type]  # without batches it is given one item
        prefetch_factor=4 if workers else None,
        generator=torch.Generator().manual_seed(0),  # leaves the global random state alone
    )
    try:
        yield from loader
    except RuntimeError as error:
        if not workers:
            raise
        raise ValueError(
            f"a process that reads pictures died ({str(error).partition(chr(10))[0]}); run the same command again, "
            "with fewer of them (workers) if memory ran out"
        ) from error


def _unchanged(chunk: Chunk) -> Chunk:
    return chunk


def batches(chunks: Iterable[Chunk], size: int) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
    """Yields all patches ``[size, H, W, 3] uint8`` with their metadata, in order; the last batch may be smaller."""
    pixels: list[Tensor] = []
    entries: list[dict[str, Any]] = []
    for chunk in chunks:
        pixels.append(chunk.pixels)
        entries += chunk.entries
        if len(entries) >= size:
            together = torch.cat(pixels)
            for first in range(0, len(together) - size + 1, size):
                yield together[first : first + size], entries[first : first + size]
            done = len(entries) // size * size
            pixels, entries = [together[done:]], entries[done:]
    if entries:
        yield torch.cat(pixels), entries
