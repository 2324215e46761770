"""Re-ranking: samples several candidates for each image and keeps the one whose embedding is nearest to the query.

The score is the cosine similarity between the embedding of a candidate, rounded to 8 bits as in its file, and the query
vector. Ramesh et al. 2021 (DALL-E, arXiv 2102.12092, section 2.6) re-rank the samples of a text with a contrastive
model in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.queries import mix
from rdm.retrieval.retriever import Retriever
from rdm.sampling.copies import DIGITS, CopyCheck, Likeness, draw_checked, embed_sample
from rdm.sampling.generate import Draw
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings

STRIDE = 2654435769  # 2**32 over the golden ratio; its multiples modulo 2**32 are far from one another
# Values with which every seed gives the same image.
SAME: dict[str, Any] = {"temperature": 0, "top_k": 1, "strength": 0, "invert": True}


@dataclass(frozen=True)
class Candidate:
    """One candidate for an image.

    Attributes:
        seed: the seed that the candidate was sampled with.
        score: the cosine similarity between its embedding and the query vector, rounded.
        is_copy: whether it is flagged as a copy of a database row; None if copy detection is off.
    """

    seed: int
    score: float
    is_copy: bool | None = None


class Drawn(NamedTuple):
    """Images as they were drawn; the entries are those of :class:`rdm.sampling.samples.Samples`."""

    images: Tensor
    seeds: list[int]
    copies: list[Likeness] | None
    candidates: list[tuple[Candidate, ...]] | None

    def replaced(self, places: Sequence[int], others: Drawn) -> Drawn:
        """Returns these images with others in some of their places."""
        images = self.images.clone()
        images[list(places)] = others.images
        lists: list[Any] = []
        for own, new in zip(self[1:], others[1:], strict=True):
            by_place = dict(zip(places, new or (), strict=bool(new)))
            lists.append(own and [by_place.get(place, each) for place, each in enumerate(own)])
        return Drawn(images, *lists)


def check_best_of(settings: Settings, request: Request) -> None:
    """Checks that the candidates for an image can differ from one another.

    Raises:
        ValueError: several candidates are asked for, but with this setting or request every seed gives the same image.
    """
    if settings.best_of == 1:
        return
    if len(request.seeds) > 1 and len(set(request.seeds)) == 1:
        raise ValueError(
            f"got best_of={settings.best_of} for images that share one seed, expected 1; leave out best_of"
        )
    edit = {} if request.canvas is None else request.canvas.about
    values = {"temperature": settings.temperature, "top_k": settings.top_k, **edit}
    for name, value in SAME.items():
        if values.get(name) == value:
            raise ValueError(
                f"got best_of={settings.best_of} with {name}={value}, for which every seed gives the same image; "
                "leave out best_of"
            )


def candidate_seed(seed: int, number: int) -> int:
    """Returns the seed of a candidate: the image's own for number 0, ``(seed + number * STRIDE) % 2**32`` for others.

    The seed depends neither on other images nor on the number of candidates. With up to 10,000 candidates, images with
    consecutive seeds share no candidate seed while images times candidates are fewer than a billion.
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
) -> Drawn:
    """Returns the best candidate for each image, its seed, its copy detection, and all candidates (None if n is 1).

    Each candidate is sampled and checked like a single image, see :func:`draw_checked`; a flagged one may be redrawn.
    The candidate with the highest score among those that are not flagged as a copy is kept. If all are flagged, the one
    with the highest score is kept. If scores are equal, the first is kept.

    Args:
        draw: the function that samples images.
        seeds: the first seed of each image; see :func:`candidate_seed`.
        neighbours: the embeddings of each image's neighbours, ``[B, K, D]``.
        retriever: provides the embedder for the scores, and the index for copy detection.
        check: see :func:`draw_checked`.
        n: number of candidates for each image.
        queries: the query vector of each image, ``[B, D]``; None takes the mean direction of its neighbours.
    """
    if n == 1:
        return Drawn(*draw_checked(draw, seeds, neighbours, retriever, check), None)

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
    considered = [tuple(candidates[i] for i in group) for group in groups]
    return Drawn(images[kept], [drawn[i] for i in kept], likeness, considered)
