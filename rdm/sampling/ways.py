"""Functions that make requests: from texts, an image, rows, classes or popular rows. Each returns a :class:`Request`.

The first argument is always the loaded model. ``k`` is the number of neighbours of each image; if not given, it is as
large as in training. ``seed`` is the seed of the first image; image i has the seed ``seed + i``.

Of a plain latent diffusion model, :func:`texts`, :func:`classes` and :func:`popular` ask in the ways of
:mod:`rdm.sampling.plain`; arguments that concern neighbours are then refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rdm.loading import Loaded
from rdm.retrieval.classes import labelled, resolve_class
from rdm.retrieval.neighbours.popularity import popularity
from rdm.retrieval.queries import between as texts_between
from rdm.retrieval.queries import class_texts, mix, popular_queries, text_queries
from rdm.retrieval.retriever import Retrieved
from rdm.sampling import plain
from rdm.sampling.given import Picture, name_of, open_given
from rdm.sampling.neighbours import Neighbour, check_chosen, chosen_neighbours
from rdm.sampling.request import Request, check_tokens
from rdm.sampling.shown import shown_picture
from rdm.sampling.values import IMAGE_WEIGHT, NEGATIVE_WEIGHT, POOL, TOP_M, WORDS, check_arguments, check_pool


def texts(
    loaded: Loaded,
    prompts: str | Sequence[str],
    *,
    k: int | None = None,
    seed: int = 0,
    tokens: str = "neighbours",
    image: Picture | None = None,
    image_weight: float = IMAGE_WEIGHT,
    negative: str | None = None,
    negative_weight: float = NEGATIVE_WEIGHT,
) -> Request:
    """Requests one image for each text.

    Args:
        loaded: model and database.
        prompts: the texts; one text stands for a list of it.
        k: number of neighbours of each image.
        seed: the seed of the first image.
        tokens: what the context consists of: ``neighbours``, ``text`` (the prompt alone) or ``both`` (the prompt
            followed by the neighbours).
        image: a picture or its file. Neighbours are then looked up with a weighted mean of the prompt and the picture.
        image_weight: the weight of the picture; the prompt has the weight 1.
        negative: a negative prompt. It enters the query vector for the neighbours with a negative weight.
        negative_weight: the magnitude of this weight; the prompt has the weight 1.

    Raises:
        FileNotFoundError: the picture does not exist.
        ValueError: there is no prompt, a prompt is empty, or an argument does not accept its value or has no effect.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for prompt in prompts or [""]:
        WORDS.check("prompt", prompt)
    check_tokens(tokens, ("neighbours", "text", "both"))
    weights_given = {"image": image, "image_weight": image_weight, "negative_weight": negative_weight}
    check_arguments(k=k, seed=seed, negative=negative, **weights_given)
    if loaded.is_plain:
        others = {"k": k, "image": image, "negative": negative, "tokens": tokens if tokens == "both" else None}
        return plain.texts(loaded, prompts, seed=seed, **others)
    k, embedded = k or loaded.k, text_queries(loaded.retriever.embedder, prompts)
    queries, weights = [embedded], [1.0]
    asked: dict[str, Any] = {"way": "text", "k": k, **loaded.retriever.about}
    if negative is not None:
        queries.append(text_queries(loaded.retriever.embedder, [negative]).expand_as(embedded))
        weights.append(-negative_weight)
        asked |= {"negative": negative, "negative_weight": negative_weight}
    if image is not None:
        queries.append(shown_picture(loaded, image).query(loaded).expand_as(embedded))
        weights.append(image_weight)
        asked |= {"image": name_of(image), "image_weight": image_weight}
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


def between(
    loaded: Loaded, start: str | Image.Image, end: str | Image.Image, n: int, *, k: int | None = None, seed: int = 0
) -> Request:
    """Requests n images that interpolate between two texts or open pictures. All have the same seed.

    Raises:
        ValueError: n is below 2, a text is empty, or a picture cannot be read.
    """
    check_arguments(n=n, k=k, seed=seed)
    for each in (start, end):
        if not isinstance(each, Image.Image):
            WORDS.check("prompt", each)
    if isinstance(start, str) and isinstance(end, str):
        first, last = text_queries(loaded.retriever.embedder, [start, end])
    else:
        first, last = (_end(loaded, each) for each in (start, end))
    names = [each if isinstance(each, str) else name_of(each) for each in (start, end)]
    labels = [f"{names[0]} -> {names[1]}, {place / max(n - 1, 1):.0%}" for place in range(n)]
    k = k or loaded.k
    asked = {"way": "between", "k": k, "start": names[0], "end": names[1], **loaded.retriever.about}
    return Request(loaded.retriever(texts_between(first, last, n), k), labels, [seed] * n, asked)


def _end(loaded: Loaded, end: str | Image.Image) -> Tensor:
    """Returns the vector ``[D]`` of a text or an open picture."""
    if isinstance(end, str):
        return text_queries(loaded.retriever.embedder, [end])[0]
    return shown_picture(loaded, end).query(loaded)[0]


def image(
    loaded: Loaded,
    picture: Picture,
    n: int,
    *,
    k: int | None = None,
    seed: int = 0,
    tokens: str = "neighbours",
) -> Request:
    """Requests n variations of a picture.

    Args:
        loaded: model and database.
        picture: the picture, or its file.
        n: number of images.
        k: number of neighbours of each image.
        seed: the seed of the first image.
        tokens: what the context consists of: ``neighbours``, ``picture`` (the picture alone) or ``both`` (the picture
            followed by its neighbours).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture, or an argument does not accept its value.
    """
    check_tokens(tokens, ("neighbours", "picture", "both"))
    check_arguments(n=n, k=k, seed=seed)
    opened = open_given(picture, value_range=loaded.data.value_range)
    queries = shown_picture(loaded, opened).query(loaded).expand(n, -1)
    k, seen = k or loaded.k, {"file": opened.file, "sha256": opened.sha256}
    return Request(
        loaded.retriever(queries, k),
        [opened.name] * n,
        range(seed, seed + n),
        {"way": "image", "k": k, **loaded.retriever.about},
        tokens=tokens,
        queries=queries,
        query_tokens=queries,
        query_picture=None if tokens == "neighbours" else seen,
    )


def rows(loaded: Loaded, chosen: Sequence[Neighbour], n: int, *, seed: int = 0) -> Request:
    """Requests n images whose neighbours are the given database rows and pictures, all of them for each image.

    Args:
        loaded: model and database.
        chosen: numbers of rows, files of pictures, and open pictures.
        n: number of images.
        seed: the seed of the first image.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a row does not exist or is removed, a picture is none, nothing is chosen, or an argument does not
            accept its value.
    """
    check_arguments(n=n, seed=seed)
    check_chosen(loaded, chosen)
    found, pictures = chosen_neighbours(loaded, chosen)
    names = [pictures[-1 - row].name if row < 0 else str(row) for row in found.rows[0].tolist()]
    label = ("rows and pictures " if pictures else "rows ") + ", ".join(names)
    # Without a query, each row or picture counts as its own, to which it has the similarity 1.
    ones = np.ones((n, len(names)), np.float32)
    every = Retrieved(found.embeddings.expand(n, -1, -1), np.tile(found.rows, (n, 1)), ones)
    return Request(every, [label] * n, range(seed, seed + n), {"way": "rows"}, pictures=pictures)


def classes(
    loaded: Loaded,
    names: str | Sequence[str],
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
        names: class names, see :func:`rdm.retrieval.classes.class_names`; one name stands for a list of it.
        k: number of neighbours of each image.
        pool: with ``by="text"``, the number of nearest rows that neighbours are drawn from.
        by: ``text`` draws k neighbours from the ``pool`` rows nearest to the sentence of the class (Blattmann et al.
            2022, section 3.2); ``label`` takes rows that the database stores under the class, see
            :func:`rdm.retrieval.classes.labelled`.
        seed: the seed of the first image.
        tokens: what the context consists of: ``neighbours``, ``text`` (the sentence of the class) or ``both``.

    Raises:
        ValueError: a class has fewer than k rows, or an argument does not accept its value or has no effect.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names or [""]:
        WORDS.check("class", name)
    check_tokens(tokens, ("neighbours", "text", "both"))
    check_arguments(k=k, seed=seed, pool=pool, by=by)
    check_pool(pool, by, k or loaded.k)
    if loaded.is_plain:
        chosen = {"by": (by, "text"), "pool": (pool, POOL), "tokens": (tokens, "neighbours")}
        others = {name: value for name, (value, default) in chosen.items() if value != default}
        return plain.classes(loaded, names, seed=seed, k=k, **others)
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


def class_of(loaded: Loaded, name: str) -> str:
    """Returns the name of the class that a word names: one of the database, or one of a class-conditional model.

    Raises:
        ValueError: there is no such class.
    """
    if not loaded.is_plain:
        return resolve_class(name, loaded.retriever.database)
    number = plain.class_number(loaded, name)
    return loaded.class_names[number] if number < len(loaded.class_names) else str(number)


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
        ValueError: an argument does not accept its value.
    """
    check_arguments(n=n, k=k, seed=seed, top_m=top_m, weighted=weighted)
    if loaded.is_plain:
        others = {"k": k, "top_m": None if top_m == TOP_M else top_m, "weighted": weighted}
        return plain.unconditional(loaded, n, seed=seed, **others)
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
