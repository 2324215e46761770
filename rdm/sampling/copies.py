"""Copy detection: scores each sample against the database, flags near-copies, optionally redraws them.

The score is the cosine similarity between the embedding of a sample, rounded to 8 bits as in its file, and the
embedding of a database row. Somepalli et al. 2023 detect replicated training images in the same way: they look up the
nearest one in the feature space of a descriptor. The check covers database rows only. A copy of a training image that
is not a row of the database is not detected.
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

DIGITS = 4  # decimal places that a similarity is rounded to; further ones differ between machines


@dataclass(frozen=True)
class CopyCheck:
    """The options of copy detection.

    Attributes:
        threshold: a sample is flagged as a copy if its similarity to the nearest row is at least this.
        redraws: the largest number of times that a flagged sample is redrawn, each time with another seed.
    """

    threshold: float = THRESHOLD
    redraws: int = 0


@dataclass(frozen=True)
class Likeness:
    """The result of copy detection for one sample. Similarities are cosines, rounded.

    Attributes:
        row: the nearest row of the whole database.
        similarity: the similarity of the sample to this row.
        neighbours: the similarity of the sample to each of its own neighbours.
        threshold: the threshold of the check, see :class:`CopyCheck`.
        rejected: the seeds of earlier draws of this sample, which were flagged as copies.
    """

    row: int
    similarity: float
    neighbours: tuple[float, ...]
    threshold: float
    rejected: tuple[int, ...] = ()

    @property
    def is_copy(self) -> bool:
        """Whether the sample is flagged as a copy of the nearest row."""
        return self.similarity >= self.threshold


def compare(image: Tensor, neighbours: np.ndarray, retriever: Retriever, threshold: float) -> Likeness:
    """Returns the similarity of a sample to the nearest row and to its neighbours.

    Samples are embedded one at a time, so the result does not depend on any other sample.

    Args:
        image: the sample, ``[3, H, W]`` in [-1, 1].
        neighbours: the embeddings of its own neighbours, ``[K, D] float32``.
        retriever: embedder and index. All rows are searched, even if neighbours are restricted to some of the rows.
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
    """Returns the embedding ``[1, D] float32`` of a sample ``[3, H, W]`` in [-1, 1], rounded to 8 bits."""
    return embed_images(embedder, [as_written(image)], ["the sample"])


def as_written(image: Tensor) -> Tensor:
    """Returns an image ``[3, H, W]`` in [-1, 1] rounded to 8 bits, as its file stores it."""
    return from_uint8(to_uint8(image))


def draw_checked(
    draw: Draw, seeds: Sequence[int], neighbours: Tensor, retriever: Retriever, check: CopyCheck | None
) -> tuple[Tensor, list[int], list[Likeness] | None]:
    """Returns images, the seeds of their last draws, and the results of copy detection (None without a check).

    A sample that is still flagged after the last redraw is returned, with its flag.

    Args:
        draw: the function that samples images.
        seeds: the first seed of each image.
        neighbours: the embeddings of each image's neighbours, ``[B, K, D]``.
        retriever: see :func:`compare`.
        check: threshold and number of redraws; None turns copy detection off.
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
    """Returns the seed of an image's n-th redraw, 0 to 2**32 - 1. It depends only on n and the image's first seed."""
    digest = hashlib.sha256(f"redraw {attempt} of {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
