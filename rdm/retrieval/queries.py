"""Queries, which are raw vectors ``[B, D] float32``, from popular rows, texts, class names, images and mixtures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.pictures import with_channels
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder

CLASS_TEMPLATE = "An image of a {class}."
_BATCH = 64  # texts that are embedded at once


def popular_queries(
    database: RetrievalDatabase,
    popularity: np.ndarray,
    n: int,
    *,
    generator: np.random.Generator,
    top_m: float | int = 0.01,
    weighted: bool = False,
) -> Tensor:
    """Returns vectors of popular rows, pseudo-queries for unconditional sampling, ``[n, D] float32``.

    Small m gives better and less diverse images (Blattmann et al. 2022, section 3.2).

    Args:
        database: holds the vectors.
        popularity: ``[N]``, how many training pictures have each row as a neighbour, from
            ``NeighbourTable.popularity``.
        n: number of queries, drawn with replacement.
        generator: source of the randomness.
        top_m: draw from the most popular rows only: a fraction (float in (0, 1]) or a number (int) of the rows.
        weighted: draw in proportion to popularity instead of uniformly.

    Raises:
        ValueError: the popularity is of another number of rows, or see :func:`popular_rows`.
    """
    rows = popular_rows(popularity, n, generator=generator, top_m=top_m, weighted=weighted)
    if len(popularity) != len(database):
        raise ValueError(f"got popularity of {len(popularity)} rows, the database has {len(database)}; count it again")
    return torch.from_numpy(database.embeddings(rows))


def popular_rows(
    popularity: np.ndarray,
    n: int,
    *,
    generator: np.random.Generator,
    top_m: float | int = 0.01,
    weighted: bool = False,
) -> np.ndarray:
    """Returns n rows drawn from the m most popular ones, ``[n] int64``.

    Rows that no training picture has as a neighbour are never drawn, because the proposal distribution gives them no
    weight. Equally popular rows are ranked in the order of the database. The arguments are those of
    :func:`popular_queries`.

    Raises:
        ValueError: m is out of range, or no row is popular.
    """
    total = len(popularity)
    if isinstance(top_m, float) and 0.0 < top_m <= 1.0:
        keep = max(1, round(top_m * total))
    elif isinstance(top_m, int) and 1 <= top_m <= total:
        keep = int(top_m)
    else:
        raise ValueError(
            f"got top_m={top_m!r}, expected a fraction in (0, 1] as a float or a number of rows from 1 to {total}"
        )
    best = np.argsort(-popularity, kind="stable")[:keep]
    best = best[popularity[best] > 0]
    if not len(best):
        raise ValueError("got a popularity of zero for every row; count it from a neighbour table of this database")
    weights = popularity[best] / popularity[best].sum() if weighted else None
    return generator.choice(best, size=n, p=weights)


@torch.inference_mode()
def text_queries(embedder: Embedder, prompts: Sequence[str]) -> Tensor:
    """Returns vectors of texts, ``[B, D] float32``; of many texts, a batch at a time."""
    texts = list(prompts)
    batches = [texts[start : start + _BATCH] for start in range(0, max(len(texts), 1), _BATCH)]
    return torch.cat([embedder.texts(batch).float() for batch in batches])


def class_queries(embedder: Embedder, classes: Sequence[str], template: str = CLASS_TEMPLATE) -> Tensor:
    """Returns vectors of class names within a template, ``[B, D] float32``.

    To sample a class, retrieve a pool of l neighbours of its query and draw k of them for each image, as
    ``Retriever(queries, k, pool=l, generator=...)`` does (Blattmann et al. 2022, section 3.2).

    Args:
        embedder: makes the vectors.
        classes: class names; hyphens and underscores become spaces.
        template: a text that contains ``{class}``.

    Raises:
        ValueError: the template lacks ``{class}``.
    """
    return text_queries(embedder, class_texts(classes, template))


def class_texts(classes: Sequence[str], template: str = CLASS_TEMPLATE) -> list[str]:
    """Returns the sentences of class names, see :func:`class_queries`.

    Raises:
        ValueError: the template lacks ``{class}``.
    """
    if "{class}" not in template:
        raise ValueError(f"got template {template!r}, expected a text that contains {{class}}")
    names = [name.replace("-", " ").replace("_", " ") for name in classes]
    return [template.replace("{class}", name) for name in names]


@torch.inference_mode()
def image_queries(embedder: Embedder, images: Tensor) -> Tensor:
    """Returns vectors ``[B, D] float32`` of images ``[B, 3, H, W]`` or ``[B, 1, H, W]`` in [-1, 1]."""
    return embedder.images(with_channels(images, 3)).float()


def mix(queries: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted mean direction of several queries at their mean length, ``[B, D] float32``.

    Only the directions are mixed. The vectors of texts and of images differ in length, and a long vector would
    otherwise dominate a short one.

    Args:
        queries: M tensors ``[B, D]``.
        weights: M numbers with a positive sum; a negative weight moves the result away from its query.

    Raises:
        ValueError: shapes or counts differ, the sum of the weights is not positive, or the directions cancel out.
    """
    shapes = {tuple(query.shape) for query in queries}
    if len(shapes) != 1 or len(queries) != len(weights):
        raise ValueError(
            f"got {len(queries)} queries of shapes {sorted(shapes)} and {len(weights)} weights, expected equal "
            "shapes and one weight for each query"
        )
    if sum(weights) <= 0:
        raise ValueError(f"got weights {list(weights)}, expected a sum above zero")
    stacked = torch.stack(list(queries)).float()
    share = (torch.tensor(weights, dtype=torch.float32) / sum(weights)).to(stacked.device)[:, None, None]
    lengths = stacked.norm(dim=-1, keepdim=True)
    direction = (share * stacked / lengths).sum(0)
    size = direction.norm(dim=-1, keepdim=True)
    if not (size > 1e-6).all():
        raise ValueError("got queries that are zero or whose directions cancel out; change the weights")
    length = (share.abs() * lengths).sum(0) / share.abs().sum()
    return direction / size * length


def between(first: Tensor, second: Tensor, n: int) -> Tensor:
    """Returns n vectors that lead from one query to another and include both, ``[n, D] float32``.

    This is spherical linear interpolation (Shoemake 1985): directions are evenly spaced on the great circle between the
    two queries, and lengths change linearly.

    Args:
        first: ``[D]``.
        second: ``[D]``.
        n: number of vectors, at least 2.

    Raises:
        ValueError: n is below 2, a query is zero, or the two have opposite directions, so that no path between them is
            the shortest.
    """
    if n < 2:
        raise ValueError(f"got n={n} vectors between two queries, expected at least 2, which are the queries")
    lengths = torch.stack([first.norm(), second.norm()]).float()
    if not (lengths > 0).all():
        raise ValueError("got a query that is zero and has no direction; use another query")
    start, end = first.float() / lengths[0], second.float() / lengths[1]
    angle = 2 * torch.atan2((start - end).norm(), (start + end).norm())  # unlike acos, this is exact for small angles
    if angle > torch.pi - 1e-4:
        raise ValueError(
            "got two queries of opposite directions, between which no path is the shortest; use other queries"
        )
    share = torch.linspace(0, 1, n, device=first.device)[:, None]
    if angle > 1e-4:
        directions = ((1 - share) * angle).sin() * start + (share * angle).sin() * end
    else:  # for so small an angle the sphere is flat
        directions = (1 - share) * start + share * end
    return directions / directions.norm(dim=-1, keepdim=True) * torch.lerp(lengths[0], lengths[1], share)
