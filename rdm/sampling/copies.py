"""Is a sample a copy? How like it is to the rows of the database, a mark above a threshold, other seeds for the marked.

Likeness is the cosine of embeddings, of the picture as it is written and of a row, in the embedder's space of images.
Somepalli et al. 2023 look for replicated training pictures in this way, by the nearest one in the space of a
descriptor. What no row shows is not found: pictures that the model was trained on are compared as far as they are rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ldm.pictures import from_uint8, to_uint8
from rdm.retrieval.embedder import Embedder, embed_images
from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.retriever import Retriever
from rdm.sampling.generate import Draw
from rdm.sampling.settings import THRESHOLD

DIGITS = 4  # of a likeness: what lies beyond differs between machines


@dataclass(frozen=True)
class CopyCheck:
    """What becomes of a sample that is like a row.

    Attributes:
        threshold: likeness to the nearest row from which a sample is marked as a copy of it.
        redraws: how often a marked sample is drawn again, with other seeds.
    """

    threshold: float = THRESHOLD
    redraws: int = 0


@dataclass(frozen=True)
class Likeness:
    """What a sample was found to be like.

    Attributes:
        row: the nearest row of the whole database.
        similarity: likeness to it, rounded.
        neighbours: likeness to each neighbour that the sample was made of, rounded.
        threshold: of the check.
        rejected: seeds that gave copies before.
    """

    row: int
    similarity: float
    neighbours: tuple[float, ...]
    threshold: float
    rejected: tuple[int, ...] = ()

    @property
    def is_copy(self) -> bool:
        """Whether the sample is marked as a copy of the nearest row."""
        return self.similarity >= self.threshold


def compare(image: Tensor, neighbours: np.ndarray, retriever: Retriever, threshold: float) -> Likeness:
    """Returns what a sample is like; it depends on no other image, to the last bit.

    Args:
        image: ``[3, H, W]`` in [-1, 1].
        neighbours: vectors of its own neighbours, ``[K, D] float32``.
        retriever: embedder and index; all rows are searched, also where neighbours come from some alone.
        threshold: see :class:`CopyCheck`.
    """
    vector = embed_sample(image, retriever.embedder)
    found = retriever.index.search(vector, 1)
    own = unit_vectors(neighbours, "neighbour") @ unit_vectors(vector, "sample")[0]
    return Likeness(
        int(found.rows[0, 0]),
        round(float(found.scores[0, 0]), DIGITS),
        tuple(round(float(score), DIGITS) for score in own),
        threshold,
    )


def embed_sample(image: Tensor, embedder: Embedder) -> np.ndarray:
    """Returns the vector of a sample ``[3, H, W]`` in [-1, 1] as it is written, ``[1, D] float32``."""
    return embed_images(embedder, [as_written(image)], ["the sample"])


def as_written(image: Tensor) -> Tensor:
    """Returns an image ``[3, H, W]`` in [-1, 1] as a file of 8 bits gives it back."""
    return from_uint8(to_uint8(image))


def draw_checked(
    draw: Draw, seeds: Sequence[int], neighbours: Tensor, retriever: Retriever, check: CopyCheck | None
) -> tuple[Tensor, list[int], list[Likeness] | None]:
    """Returns images, the seeds that they were drawn with in the end, and what they are like, if that is checked.

    A sample that is still marked after the last redraw is kept, marked.

    Args:
        draw: makes images.
        seeds: the first seed of each image.
        neighbours: of each image, ``[B, K, D]``.
        retriever: see :func:`compare`.
        check: threshold and number of redraws; None compares none.
    """
    drawn, vectors = list(seeds), neighbours.float().cpu().numpy()
    images = draw(range(len(drawn)), drawn)
    if check is None:
        return images, drawn, None
    found = [compare(image, own, retriever, check.threshold) for image, own in zip(images, vectors, strict=True)]
    for attempt in range(1, 1 + check.redraws):
        marked = [place for place, likeness in enumerate(found) if likeness.is_copy]
        if not marked:
            break
        rejected = [(*found[place].rejected, drawn[place]) for place in marked]
        for place in marked:
            drawn[place] = further_seed(seeds[place], attempt)
        fresh = draw(marked, [drawn[place] for place in marked])
        for place, image, before in zip(marked, fresh, rejected, strict=True):
            images[place] = image
            found[place] = replace(compare(image, vectors[place], retriever, check.threshold), rejected=before)
    return images, drawn, found


def further_seed(seed: int, attempt: int) -> int:
    """Returns the seed of an image's n-th redraw, 0 to 2**32 - 1: a function of its own first seed and of n."""
    digest = hashlib.sha256(f"redraw {attempt} of {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
