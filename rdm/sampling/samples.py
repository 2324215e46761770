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
from ldm.files import file_hash
from ldm.models.diffusion.wrapper import compile_network
from rdm.cli.sampling import PRECISIONS
from rdm.loading import Loaded, Model, config_beside, load_model
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer
from rdm.retrieval.classes import labelled
from rdm.retrieval.neighbours.popularity import popularity
from rdm.retrieval.queries import between, class_queries, image_queries, mix, popular_queries, text_queries
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.canvas import Canvas, open_canvas
from rdm.sampling.copies import CHECK, CopyCheck, Likeness
from rdm.sampling.ranking import Candidate, check_best_of, draw_best
from rdm.sampling.usual import settled, usual_batch_size

LOG = logging.getLogger(__name__)
TOKENS = ("neighbours", "text", "both", "picture")
ALONE = ("text", "picture")  # contexts of a query without neighbours


@dataclass(frozen=True)
class Samples:
    """Images with what they were made from.

    Attributes:
        images: ``[B, 3, H, W]`` in [-1, 1].
        retrieved: their neighbours.
        labels: what each was asked for.
        seeds: one an image.
        settings: how they were made: ``tokens``, ``text_scale``, the options of :func:`generate`, ``best_of`` above 1.
        asked: how neighbours were looked for.
        copies: what each image is like; none where that was not checked.
        picture: what they were made of, where that is a picture ``[3, H, W]`` in [-1, 1].
        candidates: those that each was chosen from; none where it is the only one.
    """

    images: Tensor
    retrieved: Retrieved
    labels: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    asked: dict[str, Any]
    copies: list[Likeness] | None = None
    picture: Tensor | None = None
    candidates: list[tuple[Candidate, ...]] | None = None


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
    precision: str = "32",
    canvas: Canvas | None = None,
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
        precision: ``bf16`` computes matrix products and convolutions of the networks in bfloat16, while latents and
            samplers stay in float32: two to three times as fast where the processor knows it (AMX, or a recent GPU),
            slower where it does not, and images differ a little. ``32`` is float32 throughout.
        tile: decode in tiles of so many pixels a side, or such as fit a memory (``2GB``); as configured if not given.
        canvas: a picture that is edited; images are of its size.
        options: ``sampler``, ``steps``, ``scale`` and all others of ``LatentDiffusion.sample``, or of
            ``RetrievalAugmentedTransformer.sample``.

    Raises:
        ValueError: an option that makes no image; the weaker model has another latent.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"got precision '{precision}', expected {' or '.join(PRECISIONS)}")
    model.first_stage_tile = tile or model.first_stage_tile
    denoiser = None if isinstance(model, RetrievalAugmentedTransformer) else model.model.diffusion_model
    for network in (denoiser, getattr(model.first_stage_model, "decoder", None)):
        if network is not None and compile:
            compile_network(network, compile, freeze=True)
    if weaker is not None:
        options["weaker"] = load_model(config_beside(Path(weaker))["model"], Path(weaker))
        if isinstance(options["weaker"], RetrievalAugmentedTransformer):
            raise ValueError(f"weaker: {weaker} is an autoregressive model, expected a diffusion model")
    if canvas is not None:
        options["edit"] = canvas.edit(model)
        latent_shape = options["edit"].latent.shape[1:]
    size, parts = batch_size or usual_batch_size(model), []
    for start in tqdm(
        range(0, len(seeds), size), desc="sampling", unit="batch", leave=None, disable=len(seeds) <= size
    ):
        places = [min(place, len(seeds) - 1) for place in range(start, start + size)]
        piece = context[places].to(model.device)
        null = model.null_context(piece)
        piece = piece if model.use_neighbours else null  # as it was trained
        if part is not None and model.use_neighbours:
            options["part"] = part[places].to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            images = model.sample(piece, latent_shape, [seeds[place] for place in places], null=null, **options)
        parts.append(images[: len(seeds) - start].float().clamp(-1, 1).cpu())
    return torch.cat(parts) if canvas is None else canvas.paste(torch.cat(parts))


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
    options |= {"tokens": tokens, "text_scale": text_scale, "asked": {"way": "text", "k": k}, "queries": queries}
    if image:
        options["asked"] |= {"image": str(image), "image_weight": image_weight}
    if negative:
        options["asked"] |= {"negative": negative, "negative_weight": negative_weight}
    return sample_retrieved(loaded, retrieved, prompts, seeds, **options)


def sample_between(loaded: Loaded, start: str, end: str, n: int, *, k: int, seed: int, **options: Any) -> Samples:
    """Returns n images on the way from one text to another: neighbours are looked for at each place, the seed is one.

    Raises:
        ValueError: n is below 2, a text is empty, the context is not of neighbours alone, or each image is to be the
            best of several.
    """
    if not start.strip() or not end.strip():
        raise ValueError("got an empty prompt, expected some words at both ends")
    if options.get("tokens", "neighbours") != "neighbours":
        raise ValueError(f"got tokens '{options['tokens']}', expected neighbours: between two texts there is no text")
    if options.get("best_of", 1) != 1:
        raise ValueError(f"got best_of={options['best_of']} between two texts, expected 1: all images have one seed")
    ends = text_queries(loaded.retriever.embedder, [start, end])
    queries = between(ends[0], ends[1], n)
    labels = [f"{start} -> {end}, {place / (n - 1):.0%}" for place in range(n)]
    options["asked"] = {"way": "between", "k": k, "start": start, "end": end}
    return sample_retrieved(loaded, loaded.retriever(queries, k), labels, [seed] * n, **options)


def image_file_queries(loaded: Loaded, image: str | Path, sha256: str | None = None) -> Tensor:
    """Returns the vector ``[1, D]`` of a picture in a file, as pictures of the database are seen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no picture, or not the one with that hash.
    """
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    if sha256 is not None and (found := file_hash(path)) != sha256:
        raise ValueError(f"{path} has sha256 {found}, the image was made with {sha256}; give that one")
    try:
        pixels = decode_image(path.read_bytes(), loaded.latent_shape[1] * loaded.model.first_stage_model.downsampling)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return image_queries(loaded.retriever.embedder, pixels[None].to(loaded.model.device))


def sample_image(
    loaded: Loaded, image: str | Path, n: int, *, k: int, seed: int, tokens: str = "neighbours", **options: Any
) -> Samples:
    """Returns n variations of a picture in a file.

    The context is its ``neighbours``, the ``picture`` itself, or ``both``: the picture, then its neighbours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no picture, or other tokens.
    """
    if tokens == "text":
        raise ValueError("got tokens 'text' for a picture, expected neighbours, picture or both")
    queries = image_file_queries(loaded, image).expand(n, -1)
    options |= {"tokens": tokens, "asked": {"way": "image", "k": k}, "queries": queries}
    if tokens != "neighbours":
        options["query_picture"] = {"file": str(image), "sha256": file_hash(Path(image))}
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


def sample_classes(
    loaded: Loaded, classes: Sequence[str], *, k: int, pool: int = 20, by: str = "text", seed: int, **options: Any
) -> Samples:
    """Returns one image for every class name.

    Args:
        loaded: model and database.
        classes: names, see :func:`class_names`.
        k: neighbours of each.
        pool: see ``by``.
        by: ``text`` draws k neighbours from the ``pool`` rows nearest to the class's text (Blattmann et al. 2022,
            section 3.2); ``label`` takes rows that are stored under the class, see :func:`labelled`.
        seed: of the first image.
        options: see :func:`sample_retrieved`.

    Raises:
        ValueError: no such way, or a class has fewer than k rows.
    """
    seeds, options["asked"] = range(seed, seed + len(classes)), {"way": "class", "by": by, "k": k}
    if by == "label":
        retrieved = labelled(loaded.retriever, classes, k, seeds)
    elif by == "text":
        queries = class_queries(loaded.retriever.embedder, [name.rpartition("/")[2] for name in classes])
        retrieved = loaded.retriever(queries, k, pool=pool, generator=np.random.default_rng(seed))
        options["queries"], options["asked"]["pool"] = queries, pool
    else:
        raise ValueError(f"got by='{by}', expected text or label")
    return sample_retrieved(loaded, retrieved, classes, seeds, **options)


def sample_popular(
    loaded: Loaded, n: int, *, k: int, top_m: float | int, weighted: bool, seed: int, **options: Any
) -> Samples:
    """Returns n images of no particular query: neighbours of rows drawn by how often they are somebody's neighbour.

    Raises:
        FileNotFoundError: the database has no neighbour table ``neighbours/train`` to count popularity from.
    """
    queries = unconditional_queries(loaded, n, top_m=top_m, weighted=weighted, seed=seed)
    options["asked"] = {"way": "popular", "k": k, "top_m": top_m, "weighted": weighted}
    retrieved, seeds = loaded.retriever(queries, k), range(seed, seed + n)
    return sample_retrieved(loaded, retrieved, ["unconditional"] * n, seeds, **options)


def unconditional_queries(loaded: Loaded, n: int, *, top_m: float | int, weighted: bool, seed: int) -> Tensor:
    """Returns vectors of popular rows, ``[n, D]``, as :func:`sample_popular` draws them."""
    database = loaded.retriever.database
    counts, rows = popularity(database, loaded.model.conditioner.k), loaded.retriever.rows
    if rows is not None:
        counts = np.where(np.isin(np.arange(len(counts)), rows), counts, 0)
    generator = np.random.default_rng(seed)
    return popular_queries(database, counts, n, generator=generator, top_m=top_m, weighted=weighted)


def sample_retrieved(
    loaded: Loaded,
    retrieved: Retrieved,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    tokens: str = "neighbours",
    text_scale: float | None = None,
    asked: Mapping[str, Any] | None = None,
    copies: CopyCheck | None = CHECK,
    best_of: int = 1,
    queries: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    edit: Mapping[str, Any] | None = None,
    query_picture: Mapping[str, str] | None = None,
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
        copies: what becomes of an image that is like a row; ``None`` compares none.
        best_of: draw so many images for each with further seeds and keep the one nearest to its query, see
            :func:`rdm.sampling.ranking.draw_best`.
        queries: what neighbours were looked for with, ``[B, D]``; if not given, their mean direction stands for it.
        height: of the images in pixels; as trained if not given.
        width: likewise.
        edit: a picture to make them of, see :func:`rdm.sampling.canvas.describe`; they have its size.
        query_picture: ``file`` and ``sha256`` of the picture that the model sees in the place of the text.
        options: see :func:`generate`.

    Raises:
        FileNotFoundError: a picture is gone.
        ValueError: unknown tokens, a scale of the text for a context that is not of both, a size that the model
            cannot make, or several candidates that would be one image.
    """
    if tokens not in TOKENS:
        raise ValueError(f"got tokens '{tokens}', expected {', '.join(TOKENS)}")
    options = settled(options, loaded.model)
    check_best_of(best_of, {**options, **(edit or {})})
    if not loaded.model.p_uncond and any(s not in (None, 1.0) for s in (options.get("scale"), text_scale)):
        LOG.warning("guidance leads away from a null that was never trained (p_uncond is 0); scale 1 does without")
    size = {name: side for name, side in (("height", height), ("width", width)) if side}  # older records have none
    settings, shape = {"tokens": tokens, "text_scale": text_scale, **size, **options}, loaded.shape_of(height, width)
    if edit is not None:
        if size:
            raise ValueError(f"got {size} with a picture to edit, expected none: images have the size of the picture")
        settings["edit"], options["canvas"] = dict(edit), open_canvas(edit, loaded)
    if query_picture is not None:
        settings["query_picture"] = dict(query_picture)
    if best_of > 1:
        settings["best_of"] = best_of
    context = _context(loaded, retrieved, labels, tokens, query_picture)
    if text_scale is not None and tokens != "both":
        raise ValueError(f"got text_scale={text_scale} with a context of {tokens}, expected one of both")

    def draw(places: Sequence[int], seeds: Sequence[int]) -> Tensor:
        given = context[list(places)]
        part: dict[str, Any] = {} if text_scale is None else {"part": given[:, :1], "part_scale": text_scale}
        return generate(loaded.model, given, shape, seeds, **part, **options)

    neighbours, beside = retrieved.embeddings, loaded.retriever
    images, seeds, found, candidates = draw_best(draw, seeds, neighbours, beside, copies, best_of, queries)
    picture = options["canvas"].picture[0] if edit is not None else None
    asked = dict(asked or {})
    return Samples(images, retrieved, list(labels), seeds, settings, asked, found, picture, candidates)


def _context(
    loaded: Loaded, retrieved: Retrieved, labels: Sequence[str], tokens: str, picture: Mapping[str, str] | None
) -> Tensor:
    """Returns what the model sees, ``[B, L, D]``: neighbours, the query (a text or a picture) alone, or both."""
    conditioner, neighbours = loaded.model.conditioner, retrieved.embeddings
    if tokens == "neighbours":
        return conditioner(neighbours, include_query=False)
    if picture is not None:
        queries = image_file_queries(loaded, picture["file"], picture["sha256"]).expand(len(labels), -1)
    elif tokens == "picture":
        raise ValueError("got tokens 'picture' without a picture, expected neighbours, text or both")
    else:
        queries = text_queries(loaded.retriever.embedder, labels)
    return conditioner(neighbours[:, :0] if tokens in ALONE else neighbours, queries, include_query=True)
