"""A request for images: the neighbours, the query embeddings that the model sees, and the seeds.

The settings of the sampler are not part of a request, see :mod:`rdm.sampling.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rdm.modules.conditioner import Conditioner
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.canvas import Canvas

PLAIN = "condition"  # the context is the condition of a plain model
TOKENS = ("neighbours", "text", "both", "picture", PLAIN)
ALONE = ("text", "picture", PLAIN)  # the context is the query without neighbours


@dataclass(frozen=True, eq=False)
class Request:
    """A request for B images, made by a function of :mod:`rdm.sampling.ways` or :func:`rdm.sampling.edit.edit`.

    Attributes:
        retrieved: the neighbours of each image.
        labels: the name of each image in its record.
        seeds: the seed of each image.
        asked: how the neighbours were looked up, as stored in the record.
        tokens: what the context consists of: ``neighbours``, the query alone (``text`` or ``picture``), or ``both``,
            the query followed by its neighbours; ``condition`` for a plain model, which has no neighbours.
        queries: the query vectors that the neighbours were looked up with, ``[B, D]``; None without a look-up.
        query_tokens: the query embeddings in the context, ``[B, D]``; needed unless ``tokens`` is ``neighbours``.
        prompts: the texts of ``query_tokens``; None if they are embeddings of a picture.
        query_picture: ``file`` and ``sha256`` of the picture of ``query_tokens``; None if they are texts.
        canvas: the picture that is edited; None if nothing is edited.
        given: what the cond stage of a plain model encodes for each image: texts or the numbers of classes, of which
            None stands for the null condition; None for a model without a condition.

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
    query_picture: Mapping[str, str] | None = None
    canvas: Canvas | None = None
    given: Sequence[str | int | None] | None = None

    def __post_init__(self) -> None:
        check_tokens(self.tokens, TOKENS)
        if self.tokens not in ("neighbours", PLAIN) and self.query_tokens is None:
            raise ValueError(
                f"got tokens '{self.tokens}' without the embedding of a text or a picture, expected 'neighbours'; "
                "give query_tokens"
            )

    def context(self, conditioner: Conditioner) -> Tensor:
        """Returns the context of the model, ``[B, L, D]``."""
        neighbours = self.retrieved.embeddings
        if self.tokens == "neighbours":
            return conditioner(neighbours, include_query=False)
        shown = neighbours[:, :0] if self.tokens in ALONE else neighbours
        return conditioner(shown, self.query_tokens, include_query=True)


def check_tokens(tokens: str, known: Sequence[str]) -> None:
    """Checks that a value of ``tokens`` is among the known ones.

    Raises:
        ValueError: it is unknown.
    """
    if tokens not in known:
        raise ValueError(f"got tokens '{tokens}', expected {', '.join(known)}")
