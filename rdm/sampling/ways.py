"""Functions that make requests: from texts, an image, rows, classes or popular rows. Each returns a :class:`Request`.

The first argument is always the loaded model. ``k`` is the number of neighbours of each image; if not given, it is as
large as in training. ``seed`` is the seed of the first image; image i has the seed ``seed + i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.decode import decode_image
from ldm.files import file_hash, located
from rdm.loading import Loaded
from rdm.retrieval.classes import labelled
from rdm.retrieval.neighbours.popularity import popularity
from rdm.retrieval.queries import between as texts_between
from rdm.retrieval.queries import class_texts, image_queries, mix, popular_queries, text_queries
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.request import Request, check_tokens
from rdm.sampling.settings import IMAGE_WEIGHT, NEGATIVE_WEIGHT, POOL, TOP_M


def texts(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    k: int | None = None,
    seed: int = 0,
    tokens: str = "neighbours",
    image: str | Path | None = None,
    image_weight: float = IMAGE_WEIGHT,
    negative: str | None = None,
    negative_weight: float = NEGATIVE_WEIGHT,
) -> Request:
    """Requests one image for each text.

    Args:
        loaded: model and database.
        prompts: the texts.
        k: number of neighbours of each image.
        seed: the seed of the first image.
        tokens: what the context consists of: ``neighbours``, ``text`` (the prompt alone) or ``both`` (the prompt
            followed by the neighbours).
        image: the file of a picture. Neighbours are then looked up with a weighted mean of the prompt and the picture.
        image_weight: the weight of the picture; the prompt has the weight 1.
        negative: a negative prompt. It enters the query vector for the neighbours with a negative weight.
        negative_weight: the magnitude of this weight; the prompt has the weight 1.

    Raises:
        FileNotFoundError: the picture does not exist.
        ValueError: there is no prompt, a prompt is empty, or ``tokens`` is unknown.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError("got an empty prompt, expected some words")
    check_tokens(tokens, ("neighbours", "text", "both"))
    k, embedded = k or loaded.k, text_queries(loaded.retriever.embedder, prompts)
    queries, weights = [embedded], [1.0]
    asked: dict[str, Any] = {"way": "text", "k": k, **loaded.retriever.about}
    if negative:
        queries.append(text_queries(loaded.retriever.embedder, [negative]).expand_as(embedded))
        weights.append(-negative_weight)
        asked |= {"negative": negative, "negative_weight": negative_weight}
    if image:
        queries.append(picture_queries(loaded, image).expand_as(embedded))
        weights.append(image_weight)
        asked |= {"image": str(image), "image_weight": image_weight}
    vectors = embedded if len(queries) == 1 else mix(queries, weights)
    return Request(
        loaded.retriever(vectors, k),
        prompts,
        range(seed, seed + len(prompts)),
        asked,
        tokens=tokens,
        queries=vectors,
        query_tokens=embedded,
        prompts=prompts,
    )


def between(loaded: Loaded, start: str, end: str, n: int, *, k: int | None = None, seed: int = 0) -> Request:
    """Requests n images that interpolate between two texts. All have the same seed.

    Raises:
        ValueError: n is below 2, or a text is empty.
    """
    if not start.strip() or not end.strip():
        raise ValueError("got an empty prompt, expected some words at both ends")
    ends = text_queries(loaded.retriever.embedder, [start, end])
    labels = [f"{start} -> {end}, {place / max(n - 1, 1):.0%}" for place in range(n)]
    k = k or loaded.k
    asked = {"way": "between", "k": k, "start": start, "end": end, **loaded.retriever.about}
    return Request(loaded.retriever(texts_between(ends[0], ends[1], n), k), labels, [seed] * n, asked)


def image(
    loaded: Loaded,
    picture: str | Path,
    n: int,
    *,
    k: int | None = None,
    seed: int = 0,
    tokens: str = "neighbours",
) -> Request:
    """Requests n variations of a picture.

    Args:
        loaded: model and database.
        picture: the file of the picture.
        n: number of images.
        k: number of neighbours of each image.
        seed: the seed of the first image.
        tokens: what the context consists of: ``neighbours``, ``picture`` (the picture alone) or ``both`` (the picture
            followed by its neighbours).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture, or ``tokens`` is unknown.
    """
    check_tokens(tokens, ("neighbours", "picture", "both"))
    queries = picture_queries(loaded, picture).expand(n, -1)
    k, seen = k or loaded.k, {"file": str(picture), "sha256": file_hash(Path(picture))}
    return Request(
        loaded.retriever(queries, k),
        [str(picture)] * n,
        range(seed, seed + n),
        {"way": "image", "k": k, **loaded.retriever.about},
        tokens=tokens,
        queries=queries,
        query_tokens=queries,
        query_picture=None if tokens == "neighbours" else seen,
    )


def rows(loaded: Loaded, numbers: Sequence[int], n: int, *, seed: int = 0) -> Request:
    """Requests n images that use the given database rows as neighbours.

    Raises:
        ValueError: a row does not exist.
    """
    tiled = np.tile(np.array(numbers, dtype=np.int64), (n, 1))
    retrieved = retrieved_rows(loaded, tiled, np.ones(tiled.shape, np.float32))
    label = "rows " + ", ".join(map(str, numbers))
    return Request(retrieved, [label] * n, range(seed, seed + n), {"way": "rows"})


def classes(
    loaded: Loaded,
    names: Sequence[str],
    *,
    k: int | None = None,
    pool: int = POOL,
    by: str = "text",
    seed: int = 0,
    tokens: str = "neighbours",
) -> Request:
    """Requests one class-conditional image for each name.

    Args:
        loaded: model and database.
        names: class names, see :func:`rdm.retrieval.classes.class_names`.
        k: number of neighbours of each image.
        pool: with ``by="text"``, the number of nearest rows that neighbours are drawn from.
        by: ``text`` draws k neighbours from the ``pool`` rows nearest to the sentence of the class (Blattmann et al.
            2022, section 3.2); ``label`` takes rows that the database stores under the class, see
            :func:`rdm.retrieval.classes.labelled`.
        seed: the seed of the first image.
        tokens: what the context consists of: ``neighbours``, ``text`` (the sentence of the class) or ``both``.

    Raises:
        ValueError: ``by`` or ``tokens`` is unknown, a class has fewer than k rows, or ``pool`` is smaller than k.
    """
    check_tokens(tokens, ("neighbours", "text", "both"))
    if by not in ("text", "label"):
        raise ValueError(f"got by='{by}', expected text or label")
    k, seeds = k or loaded.k, range(seed, seed + len(names))
    sentences = class_texts([name.rpartition("/")[2] for name in names])
    asked = {"way": "class", "by": by, "k": k, **loaded.retriever.about}
    shown: dict[str, Any] = {"tokens": tokens, "prompts": sentences}
    if by == "label" and tokens == "neighbours":  # the embedder need not be loaded
        return Request(labelled(loaded.retriever, names, k, seeds), names, seeds, asked, **shown)
    queries = text_queries(loaded.retriever.embedder, sentences)
    shown["query_tokens"] = queries
    if by == "label":
        return Request(labelled(loaded.retriever, names, k, seeds), names, seeds, asked, **shown)
    retrieved = loaded.retriever(queries, k, pool=pool, generator=np.random.default_rng(seed))
    return Request(retrieved, names, seeds, {**asked, "pool": pool}, queries=queries, **shown)


def popular(
    loaded: Loaded,
    n: int,
    *,
    k: int | None = None,
    top_m: float | int = TOP_M,
    weighted: bool = False,
    seed: int = 0,
) -> Request:
    """Requests n unconditional samples (Blattmann et al. 2022, section 3.2).

    The queries are database rows, drawn from the most popular ones. The popularity of a row is the number of times that
    it is the neighbour of a training image.

    Args:
        loaded: model and database.
        n: number of images.
        k: number of neighbours of each image.
        top_m: the fraction (a float) or number (an int) of the most popular rows that queries are drawn from.
        weighted: whether queries are drawn in proportion to popularity, instead of uniformly.
        seed: the seed of the first image and of the draw of rows.

    Raises:
        FileNotFoundError: the database has no neighbour table ``neighbours/train`` to count popularity from.
    """
    k, queries = k or loaded.k, popular_vectors(loaded, n, top_m=top_m, weighted=weighted, seed=seed)
    asked = {"way": "popular", "k": k, "top_m": top_m, "weighted": weighted, **loaded.retriever.about}
    return Request(loaded.retriever(queries, k), ["unconditional"] * n, range(seed, seed + n), asked)


def popular_vectors(loaded: Loaded, n: int, *, top_m: float | int, weighted: bool, seed: int) -> Tensor:
    """Returns the vectors of popular rows, ``[n, D]``, drawn as described in :func:`popular`."""
    database, among = loaded.retriever.database, loaded.retriever.rows
    counts = popularity(database, loaded.k)
    if among is not None:
        counts = np.where(np.isin(np.arange(len(counts)), among), counts, 0)
    generator = np.random.default_rng(seed)
    return popular_queries(database, counts, n, generator=generator, top_m=top_m, weighted=weighted)


def retrieved_rows(loaded: Loaded, numbers: np.ndarray, scores: np.ndarray) -> Retrieved:
    """Returns the given database rows as neighbours.

    Args:
        loaded: model and database.
        numbers: the numbers of the rows, ``[B, K] int64``.
        scores: the similarities of the rows to the query, ``[B, K] float32``.
    """
    vectors = torch.from_numpy(loaded.retriever.database.embeddings(numbers)).to(loaded.model.device)
    return Retrieved(vectors, numbers, scores)


def picture_queries(loaded: Loaded, image: str | Path, sha256: str | None = None) -> Tensor:
    """Returns the embedding ``[1, D]`` of a picture in a file, processed like the pictures of the database.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture, or does not have the given hash.
    """
    path = located(image)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    if sha256 is not None and (found := file_hash(path)) != sha256:
        raise ValueError(f"{path} has sha256 {found}, the image was made with {sha256}; give that one")
    try:
        data = loaded.data
        pixels = decode_image(path.read_bytes(), data.image_size, value_range=data.value_range)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return image_queries(loaded.retriever.embedder, pixels[None].to(loaded.model.device))
