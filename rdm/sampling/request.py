"""A request for images: the neighbours, the query embeddings that the model sees, and the seeds.

The settings of the sampler are not part of a request, see :mod:`rdm.sampling.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdm.modules.conditioner import Conditioner
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.canvas import Canvas
from rdm.sampling.shown import ShownPicture

PLAIN = "condition"  # the context is the condition of a plain model
TOKENS = ("neighbours", "text", "both", "picture", PLAIN)
ALONE = ("text", "picture", PLAIN)  # the context is the query without neighbours


@dataclass(frozen=True, eq=False)
class Request:
    """A request for B images, made by a function of :mod:`rdm.sampling.ways` or :func:`rdm.sampling.edit.edit`.

    Attributes:
        retrieved: the neighbours of each image; in place of a row, given picture i has the number ``-1 - i``.
        labels: the name of each image in its record.
        seeds: the seed of each image.
        asked: how the neighbours were looked up, as stored in the record.
        tokens: what the context consists of: ``neighbours``, the query alone (``text`` or ``picture``), or ``both``,
            the query followed by its neighbours; ``condition`` for a plain model, which has no neighbours.
        queries: the query vectors that the neighbours were looked up with, ``[B, D]``; None without a look-up.
        query_tokens: the query embeddings in the context, ``[B, D]``; needed unless ``tokens`` is ``neighbours``.
        prompts: the texts of ``query_tokens``; None if they are embeddings of a picture.
        query_picture: ``file`` (None if it was given open) and ``sha256`` of the picture of ``query_tokens``; None if
            they are texts.
        canvas: the picture that is edited; None if nothing is edited.
        given: what the cond stage of a plain model encodes for each image: texts or the numbers of classes, of which
            None stands for the null condition; None for a model without a condition.
        pictures: the given pictures among the neighbours.

    Raises:
        ValueError: ``tokens`` is unknown, or needs a query embedding that is missing.
    """

    retrieved: Retrieved
    labels: Sequence[str]
    seeds: Sequence[int]
    asked: Mapping[str, Any] = field(default_factory=dict)
    tokens: str = "neighbours"
    queries: Tensor | None = None
    query_tokens: Tensor | None = None
    prompts: Sequence[str] | None = None
    query_picture: Mapping[str, str | None] | None = None
    canvas: Canvas | None = None
    given: Sequence[str | int | None] | None = None
    pictures: Sequence[ShownPicture] = ()

    def __post_init__(self) -> None:
        check_tokens(self.tokens, TOKENS)
        if self.tokens not in ("neighbours", PLAIN) and self.query_tokens is None:
            raise ValueError(
                f"got tokens '{self.tokens}' without the embedding of a text or a picture, expected 'neighbours'; "
                "give query_tokens"
            )

    @property
    def is_found(self) -> bool:
        """Whether the neighbours of an image were found for one query: nobody chose them, nor do they show concepts."""
        return self.asked.get("way") not in ("rows", "concepts") and self.asked.get("neighbours") != "chosen"

    def part(self, places: Sequence[int]) -> Request:
        """Returns the request for some of its images, given their places."""
        some, found = list(places), self.retrieved

        def picked(listed: Sequence[Any] | None) -> list[Any] | None:
            return None if listed is None else [listed[place] for place in some]

        return replace(
            self,
            retrieved=Retrieved(found.embeddings[some], found.rows[some], found.scores[some]),
            labels=[self.labels[place] for place in some],
            seeds=[self.seeds[place] for place in some],
            prompts=picked(self.prompts),
            given=picked(self.given),
            queries=None if self.queries is None else self.queries[some],
            query_tokens=None if self.query_tokens is None else self.query_tokens[some],
        )

    def context(self, conditioner: Conditioner) -> Tensor:
        """Returns the context of the model, ``[B, L, D]``."""
        neighbours = self.retrieved.embeddings
        if self.tokens == "neighbours":
            return conditioner(neighbours, include_query=False)
        shown = neighbours[:, :0] if self.tokens in ALONE else neighbours
        return conditioner(shown, self.query_tokens, include_query=True)


def together(parts: Sequence[Request]) -> Request:
    """Returns one request for the images of several, which differ in nothing else.

    Raises:
        ValueError: the images of the requests have different numbers of neighbours.
    """
    counts = sorted({part.retrieved.rows.shape[1] for part in parts})
    if len(counts) > 1:
        words = " and ".join(map(str, counts))
        raise ValueError(f"got requests for images with {words} neighbours, expected equal numbers; sample them apart")

    def stacked(tensors: list[Any]) -> Tensor | None:
        return None if tensors[0] is None else torch.cat(tensors)

    def listed(lists: list[Any]) -> list[Any] | None:
        return None if lists[0] is None else [each for part in lists for each in part]

    found, (rows, pictures) = [part.retrieved for part in parts], _renumbered(parts)
    return replace(
        parts[0],
        retrieved=Retrieved(
            torch.cat([each.embeddings for each in found]),
            np.concatenate(rows),
            np.concatenate([each.scores for each in found]),
        ),
        labels=[label for part in parts for label in part.labels],
        seeds=[seed for part in parts for seed in part.seeds],
        queries=stacked([part.queries for part in parts]),
        query_tokens=stacked([part.query_tokens for part in parts]),
        prompts=listed([part.prompts for part in parts]),
        given=listed([part.given for part in parts]),
        pictures=pictures,
    )


def _renumbered(parts: Sequence[Request]) -> tuple[list[np.ndarray], list[ShownPicture]]:
    """Returns the rows of several requests with the numbers that their given pictures have together, and these."""
    places: dict[ShownPicture, int] = {}
    rows = []
    for part in parts:
        numbers = [-1 - places.setdefault(picture, len(places)) for picture in part.pictures]
        given = part.retrieved.rows < 0
        rows.append(part.retrieved.rows.copy())
        rows[-1][given] = np.array(numbers, dtype=np.int64)[-1 - part.retrieved.rows[given]]
    return rows, list(places)


def check_tokens(tokens: str, known: Sequence[str]) -> None:
    """Checks that a value of ``tokens`` is among the known ones.

    Raises:
        ValueError: it is unknown.
    """
    if tokens not in known:
        raise ValueError(f"got tokens '{tokens}', expected {', '.join(known)}")
