"""A request: neighbours, what the model sees of the query, and seeds. How images are sampled is not part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rdm.modules.conditioner import Conditioner
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.canvas import Canvas

TOKENS = ("neighbours", "text", "both", "picture")
ALONE = ("text", "picture")  # contexts of a query without neighbours


@dataclass(frozen=True, eq=False)
class Request:
    """A request for B images, made by a function of :mod:`rdm.sampling.ways`.

    Attributes:
        retrieved: neighbours of each image.
        labels: name of each image in records and pictures of pictures.
        seeds: one for each image.
        asked: how the neighbours were looked up, for the record.
        tokens: what the model sees: ``neighbours``, the query alone (``text`` or ``picture``), or ``both``, the query
            and then its neighbours.
        queries: what neighbours were looked up with, ``[B, D]``; None where they were not looked up.
        query_tokens: embedding that the model sees in the query's place, ``[B, D]``, where ``tokens`` says so.
        prompts: texts of these embeddings; None where they are of a picture.
        query_picture: ``file`` and ``sha256`` of the picture that they are of.
        canvas: picture that the images are made of.

    Raises:
        ValueError: unknown tokens, or tokens of a query that is not there.
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

    def __post_init__(self) -> None:
        check_tokens(self.tokens, TOKENS)
        if self.tokens != "neighbours" and self.query_tokens is None:
            raise ValueError(f"got tokens '{self.tokens}' without a text or a picture to show, expected neighbours")

    def context(self, conditioner: Conditioner) -> Tensor:
        """Returns what the model sees, ``[B, L, D]``."""
        neighbours = self.retrieved.embeddings
        if self.tokens == "neighbours":
            return conditioner(neighbours, include_query=False)
        shown = neighbours[:, :0] if self.tokens in ALONE else neighbours
        return conditioner(shown, self.query_tokens, include_query=True)


def check_tokens(tokens: str, known: Sequence[str]) -> None:
    """Checks what a model is to see.

    Raises:
        ValueError: it is not among what is known.
    """
    if tokens not in known:
        raise ValueError(f"got tokens '{tokens}', expected {', '.join(known)}")
