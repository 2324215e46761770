"""The best of several: of the images drawn for a request, the one is kept whose embedding is nearest to the request.

Ramesh et al. 2021 (DALL-E, arXiv 2102.12092, section 2.6) rank the samples of a text so, by a contrastive model. The
score is the cosine of two embeddings, of the picture as it is written and of what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.queries import mix
from rdm.retrieval.retriever import Retriever
from rdm.sampling.copies import DIGITS, CopyCheck, Likeness, draw_checked, embed_sample
from rdm.sampling.generate import Draw
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings

STRIDE = 2654435769  # 2**32 over the golden ratio: modulo 2**32, its multiples keep far apart
SAME: dict[str, Any] = {"temperature": 0, "top_k": 1, "strength": 0, "invert": True}  # one image of all seeds


@dataclass(frozen=True)
class Candidate:
    """One of the images drawn for a request.

    Attributes:
        seed: that it was drawn with.
        score: cosine of its embedding and the request's, rounded.
        is_copy: whether it is marked as a copy of a row; None where that was not checked.
    """

    seed: int
    score: float
    is_copy: bool | None = None


def check_best_of(settings: Settings, request: Request) -> None:
    """Checks that candidates can be drawn that are not all the same image.

    Raises:
        ValueError: several candidates with a setting or a request by which every seed makes the same image.
    """
    if settings.best_of == 1:
        return
    if len(request.seeds) > 1 and len(set(request.seeds)) == 1:
        raise ValueError(f"got best_of={settings.best_of} for images of one seed, expected 1; leave it out")
    edit = {} if request.canvas is None else request.canvas.about
    values = {"temperature": settings.temperature, "top_k": settings.top_k, **edit}
    for name, value in SAME.items():
        if values.get(name) == value:
            raise ValueError(
                f"got best_of={settings.best_of} with {name}={value}, by which all seeds make one image; leave it out"
            )


def candidate_seed(seed: int, number: int) -> int:
    """Returns the seed of an image's candidate: its own for number 0, ``(seed + number * STRIDE) % 2**32`` for others.

    It depends on nothing beside the image, nor on how many candidates there are. Images of consecutive seeds share none
    as long as images times candidates are fewer than a billion, with up to 10,000 candidates.
    """
    return (seed + number * STRIDE) % 2**32 if number else seed


def draw_best(
    draw: Draw,
    seeds: Sequence[int],
    neighbours: Tensor,
    retriever: Retriever,
    check: CopyCheck | None,
    n: int,
    queries: Tensor | None,
) -> tuple[Tensor, list[int], list[Likeness] | None, list[tuple[Candidate, ...]] | None]:
    """Returns the best image of each request, its seed, what it is like, and all candidates where there are several.

    Each candidate is drawn and checked as an image alone is, see :func:`draw_checked`, so one that is like a row may be
    drawn again. Of those that are not marked as a copy the one with the highest score is kept, the first of equal ones;
    where all are marked, of them all.

    Args:
        draw: makes images.
        seeds: the first seed of each image; see :func:`candidate_seed`.
        neighbours: of each image, ``[B, K, D]``.
        retriever: its embedder scores.
        check: see :func:`draw_checked`.
        n: candidates of each image.
        queries: what each image is asked to be near to, ``[B, D]``; None for the mean direction of its neighbours.
    """
    if n == 1:
        return *draw_checked(draw, seeds, neighbours, retriever, check), None

    def draw_candidates(places: Sequence[int], given: Sequence[int]) -> Tensor:
        return draw([place // n for place in places], given)

    spread = [candidate_seed(seed, number) for seed in seeds for number in range(n)]
    images, drawn, found = draw_checked(draw_candidates, spread, neighbours.repeat_interleave(n, 0), retriever, check)
    if queries is None:
        queries = mix(list(neighbours.unbind(1)), [1.0] * neighbours.shape[1])
    asked, candidates = unit_vectors(queries.float().cpu().numpy(), "query"), []
    for place, (image, seed) in enumerate(zip(images, drawn, strict=True)):
        score = unit_vectors(embed_sample(image, retriever.embedder), "sample")[0] @ asked[place // n]
        candidates.append(Candidate(seed, round(float(score), DIGITS), found[place].is_copy if found else None))
    groups = [range(first, first + n) for first in range(0, len(drawn), n)]
    kept = [max(group, key=lambda i: (not candidates[i].is_copy, candidates[i].score)) for group in groups]
    likeness = [found[i] for i in kept] if found else None
    return images[kept], [drawn[i] for i in kept], likeness, [tuple(candidates[i] for i in group) for group in groups]
