"""Retrieval only where it is needed: a draft of the text alone is kept if it is similar enough to the text.

ImageRAG (Shalev-Arkushin et al. 2025, arXiv 2502.09411, section 3) also draws without pictures first. It asks a model
of vision and language whether the draft fits the prompt. Here, the score is the cosine similarity between the CLIP
embedding of the draft, rounded to 8 bits as in its file, and that of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rdm.retrieval.embedder import Embedder
from rdm.retrieval.index.exact import unit_vectors
from rdm.sampling.copies import DIGITS, embed_sample
from rdm.sampling.ranking import Drawn
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings

ALONE = "text"  # the ``tokens`` of a draft


@dataclass(frozen=True)
class Draft:
    """The draft of an image.

    Attributes:
        score: the similarity between its embedding and that of the text, rounded.
        kept: whether it is the image; if not, the image was drawn with neighbours.
    """

    score: float
    kept: bool


def check_drafts(settings: Settings, request: Request) -> None:
    """Checks that drafts can be drawn of the texts of a request.

    Raises:
        ValueError: drafts are asked for, but the images are not drawn from texts, or the neighbours are not all that
            the model sees of the request.
    """
    if settings.retrieve_below is None:
        return
    if request.prompts is None or request.query_tokens is None:
        raise ValueError(
            f"got retrieve_below={settings.retrieve_below} without a text that a draft could be drawn from; give a "
            "prompt, or leave out retrieve_below"
        )
    if request.tokens != "neighbours":
        raise ValueError(
            f"got retrieve_below={settings.retrieve_below} with tokens '{request.tokens}', expected 'neighbours': the "
            "draft sees the text alone, and an image after it the neighbours alone"
        )


def draw_where_needed(
    draw: Callable[[Request], Drawn], request: Request, below: float, embedder: Embedder
) -> tuple[Drawn, list[Draft]]:
    """Draws a draft of each text alone, and images with neighbours in the place of drafts that are not similar enough.

    An image that is drawn with neighbours has the same bits as if it had been drawn without a draft.

    Args:
        draw: draws the images of a request.
        request: the request; see :func:`check_drafts`.
        below: the score from which on a draft is kept.
        embedder: provides the embeddings of the drafts.

    Returns:
        the images, and the draft of each.
    """
    drafts = draw(replace(request, tokens=ALONE))
    queries: Any = request.query_tokens
    texts = unit_vectors(queries.float().cpu().numpy(), "text")
    scores = [
        round(float(unit_vectors(embed_sample(image, embedder), "draft")[0] @ text), DIGITS)
        for image, text in zip(drafts.images, texts, strict=True)
    ]
    again = [place for place, score in enumerate(scores) if score < below]
    found = drafts.replaced(again, draw(request.part(again))) if again else drafts
    return found, [Draft(score, score >= below) for score in scores]
