"""The one road from a query to images: look queries up, make a context of what is found, sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.decode import decode_image
from ldm.models.diffusion.wrapper import compile_network
from ldm.util import nearest
from rdm.loading import Loaded, Model, config_beside, find_checkpoint, load_model
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer
from rdm.options import own_options
from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.popularity import popularity
from rdm.retrieval.queries import class_queries, image_queries, mix, popular_queries, text_queries
from rdm.retrieval.retriever import Retrieved

LOG = logging.getLogger(__name__)
TOKENS = ("neighbours", "text", "both")


@dataclass(frozen=True)
class Samples:
    """Images with what they were made from.

    Attributes:
        images: ``[B, 3, H, W]`` in [-1, 1].
        retrieved: their neighbours.
        labels: what each was asked for.
        seeds: one an image.
        settings: how they were made: ``tokens``, ``text_scale`` and the options of :func:`generate`.
        asked: how neighbours were looked for.
    """

    images: Tensor
    retrieved: Retrieved
    labels: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    asked: dict[str, Any]


def generate(
    model: Model,
    context: Tensor,
    latent_shape: Sequence[int],
    seeds: Sequence[int],
    *,
    part: Tensor | None = None,
    weaker: str | None = None,
    batch_size: int | None = None,
    tile: int | str | None = None,
    compile: bool | str = False,
    **options: Any,
) -> Tensor:
    """Returns images ``[B, 3, H, W]`` in [-1, 1] on the CPU, one for each context and seed.

    Args:
        model: the model.
        context: ``[B, L, D]``.
        latent_shape: ``(C, h, w)``.
        seeds: one an image; image i depends on its seed and context, not on the batch.
        part: ``[B, l, D]``, a part of each context that is guided by a scale of its own, ``part_scale``.
        weaker: file of a weaker model to be led away from, by ``weaker_scale``.
        batch_size: images sampled together, see :func:`usual_batch_size`. A last batch is filled up, so that an image
            depends on this number in its last bits, but on no other image.
        compile: let ``torch.compile`` compile U-Net and decoder as they are now, which takes minutes and pays for many
            images; a string names another backend than inductor. A transformer, whose sequence grows, is left as it is.
        tile: decode in tiles of so many pixels a side, or such as fit a memory (``2GB``); as configured if not given.
        options: ``sampler``, ``steps``, ``scale`` and all others of ``LatentDiffusion.sample``, or of
            ``RetrievalAugmentedTransformer.sample``.

    Raises:
        ValueError: an option that makes no image; the weaker model has another latent.
    """
    model.first_stage_tile = tile or model.first_stage_tile
    denoiser = None if isinstance(model, RetrievalAugmentedTransformer) else model.model.diffusion_model
    for network in (denoiser, getattr(model.first_stage_model, "decoder", None)):
        if network is not None and compile:
            compile_network(network, compile, freeze=True)
    if weaker is not None:
        options["weaker"] = load_model(config_beside(Path(weaker))["model"], Path(weaker))
        if isinstance(options["weaker"], RetrievalAugmentedTransformer):
            raise ValueError(f"weaker: {weaker} is an autoregressive model, expected a diffusion model")
    size, parts = batch_size or usual_batch_size(model), []
    for start in tqdm(range(0, len(seeds), size), desc="sampling", unit="batch", disable=len(seeds) <= size):
        places = [min(place, len(seeds) - 1) for place in range(start, start + size)]
        piece = context[places].to(model.device)
        null = model.null_context(piece)
        piece = piece if model.use_neighbours else null  # as it was trained
        if part is not None and model.use_neighbours:
            options["part"] = part[places].to(model.device)
        images = model.sample(piece, latent_shape, [seeds[place] for place in places], null=null, **options)
        parts.append(images[: len(seeds) - start].clamp(-1, 1).cpu())
    return torch.cat(parts)


def usual_batch_size(model: torch.nn.Module) -> int:
    """Returns how many images are sampled together: on a CPU one, as a U-Net gains little from more, else eight.

    A transformer reads all its weights for one code of each image: on a CPU, four cost it little more than one.
    """
    few = 4 if isinstance(model, RetrievalAugmentedTransformer) else 1
    return few if next(model.parameters()).device.type == "cpu" else 8


def sample_texts(
    loaded: Loaded,
    prompts: Sequence[str],
    *,
    k: int,
    seed: int,
    tokens: str = "neighbours",
    text_scale: float | None = None,
    image: str | Path | None = None,
    image_weight: float = 0.5,
    negative: str | None = None,
    negative_weight: float = 0.5,
    **options: Any,
) -> Samples:
    """Returns one image for every prompt; image i has seed ``seed + i``.

    Args:
        loaded: model and database.
        prompts: texts.
        k: neighbours of each.
        seed: of the first image.
        tokens: the context: ``neighbours``, ``text`` (the prompt alone) or ``both`` (the prompt, then the neighbours).
        text_scale: with ``both``, the guidance scale of the prompt, while ``scale`` is that of its neighbours.
        image: a picture in a file; neighbours are those of a direction between the prompt's and its.
        image_weight: of the picture, where the prompt has 1.
        negative: a text that neighbours are looked for away from.
        negative_weight: how far.
        options: see :func:`generate`.

    Raises:
        ValueError: no prompt, an empty one, or unknown tokens.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError("got an empty prompt, expected some words")
    queries = text_queries(loaded.retriever.embedder, prompts)
    others = [(text_queries(loaded.retriever.embedder, [negative]), -negative_weight)] if negative else []
    others += [(image_file_queries(loaded, image), image_weight)] if image else []
    if others:
        queries = mix([queries, *(other.expand_as(queries) for other, _ in others)], [1.0, *(w for _, w in others)])
    retrieved, seeds = loaded.retriever(queries, k), range(seed, seed + len(prompts))
    options |= {"tokens": tokens, "text_scale": text_scale, "asked": {"way": "text", "k": k}}
    if image:
        options["asked"] |= {"image": str(image), "image_weight": image_weight}
    if negative:
        options["asked"] |= {"negative": negative, "negative_weight": negative_weight}
    return sample_retrieved(loaded, retrieved, prompts, seeds, **options)


def image_file_queries(loaded: Loaded, image: str | Path) -> Tensor:
    """Returns the vector ``[1, D]`` of a picture in a file, as pictures of the database are seen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no picture.
    """
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        pixels = decode_image(path.read_bytes(), loaded.latent_shape[1] * loaded.model.first_stage_model.downsampling)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return image_queries(loaded.retriever.embedder, pixels[None].to(loaded.model.device))


def sample_image(loaded: Loaded, image: str | Path, n: int, *, k: int, seed: int, **options: Any) -> Samples:
    """Returns n variations of a picture in a file: images of its neighbours."""
    queries = image_file_queries(loaded, image).expand(n, -1)
    options["asked"] = {"way": "image", "k": k}
    return sample_retrieved(loaded, loaded.retriever(queries, k), [str(image)] * n, range(seed, seed + n), **options)


def sample_rows(loaded: Loaded, rows: Sequence[int], n: int, *, seed: int, **options: Any) -> Samples:
    """Returns n images of these rows of the database, in the place of neighbours.

    Raises:
        ValueError: there is no such row.
    """
    numbers = np.tile(np.array(rows, dtype=np.int64), (n, 1))
    vectors = torch.from_numpy(loaded.retriever.database.embeddings(numbers)).to(loaded.model.device)
    retrieved = Retrieved(vectors, numbers, np.ones(numbers.shape, np.float32))
    label, options["asked"] = "rows " + ", ".join(map(str, rows)), {"way": "rows"}
    return sample_retrieved(loaded, retrieved, [label] * n, range(seed, seed + n), **options)


def sample_classes(loaded: Loaded, classes: Sequence[str], *, k: int, pool: int, seed: int, **options: Any) -> Samples:
    """Returns one image for every class name: k neighbours drawn from the class text's ``pool`` nearest rows.

    Source: Blattmann et al. 2022, section 3.2.
    """
    queries = class_queries(loaded.retriever.embedder, [name.rpartition("/")[2] for name in classes])
    retrieved = loaded.retriever(queries, k, pool=pool, generator=np.random.default_rng(seed))
    options["asked"] = {"way": "class", "k": k, "pool": pool}
    return sample_retrieved(loaded, retrieved, classes, range(seed, seed + len(classes)), **options)


def sample_popular(
    loaded: Loaded, n: int, *, k: int, top_m: float | int, weighted: bool, seed: int, **options: Any
) -> Samples:
    """Returns n images of no particular query: neighbours of rows drawn by how often they are somebody's neighbour.

    Raises:
        FileNotFoundError: the database has no neighbour table ``neighbours/train`` to count popularity from.
    """
    database = loaded.retriever.database
    counts, rows = popularity(database, loaded.model.conditioner.k), loaded.retriever.rows
    if rows is not None:
        counts = np.where(np.isin(np.arange(len(counts)), rows), counts, 0)
    generator = np.random.default_rng(seed)
    queries = popular_queries(database, counts, n, generator=generator, top_m=top_m, weighted=weighted)
    options["asked"] = {"way": "popular", "k": k, "top_m": top_m, "weighted": weighted}
    retrieved, seeds = loaded.retriever(queries, k), range(seed, seed + n)
    return sample_retrieved(loaded, retrieved, ["unconditional"] * n, seeds, **options)


def sample_retrieved(
    loaded: Loaded,
    retrieved: Retrieved,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    tokens: str = "neighbours",
    text_scale: float | None = None,
    asked: Mapping[str, Any] | None = None,
    **options: Any,
) -> Samples:
    """Returns one image for each set of neighbours.

    Args:
        loaded: model and database.
        retrieved: the neighbours.
        labels: what each image was asked for; where ``tokens`` says so, the text that the model sees.
        seeds: one an image.
        tokens: see :func:`sample_texts`.
        text_scale: see :func:`sample_texts`.
        asked: how the neighbours were looked for, for the record.
        options: see :func:`generate`.

    Raises:
        ValueError: unknown tokens, or a scale of the text for a context that is not of both.
    """
    if tokens not in TOKENS:
        raise ValueError(f"got tokens '{tokens}', expected {', '.join(TOKENS)}")
    options = own_options(options, isinstance(loaded.model, RetrievalAugmentedTransformer))
    options["batch_size"] = options.get("batch_size") or usual_batch_size(loaded.model)
    if options.get("weaker"):
        options["weaker"] = str(find_checkpoint(options["weaker"]))
    settings = {"tokens": tokens, "text_scale": text_scale, **options}
    if tokens == "neighbours":
        context = loaded.model.conditioner(retrieved.embeddings, include_query=False)
    else:
        queries = text_queries(loaded.retriever.embedder, labels)
        neighbours = retrieved.embeddings[:, :0] if tokens == "text" else retrieved.embeddings
        context = loaded.model.conditioner(neighbours, queries, include_query=True)
    if text_scale is not None:
        if tokens != "both":
            raise ValueError(f"got text_scale={text_scale} with a context of {tokens}, expected one of both")
        options |= {"part": context[:, :1], "part_scale": text_scale}
    images = generate(loaded.model, context, loaded.latent_shape, seeds, **options)
    return Samples(images, retrieved, list(labels), list(seeds), settings, dict(asked or {}))


def class_names(database: RetrievalDatabase) -> list[str]:
    """Returns the classes of a database, and every part of one written as ``category/subcategory``."""
    found = set(database.column("class_id").to_pylist())
    return sorted(found | {part for name in found for part in name.split("/")} - {""})


def resolve_class(name: str, database: RetrievalDatabase) -> str:
    """Returns the class a user means; a name that differs in a letter or two is taken, and said.

    Raises:
        ValueError: no class is like it.
    """
    known = class_names(database)
    if name in known:
        return name
    guess = nearest(name, known).partition("'")[2].partition("'")[0]
    if not guess:
        raise ValueError(f"no class '{name}' in {database.path}; it has {', '.join(known)}")
    LOG.warning("no class '%s'; taking '%s'", name, guess)
    return guess
