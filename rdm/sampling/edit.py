"""Edits of a picture: inpainting, outpainting, image-to-image and DDIM inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldm.data.decode import Size
from ldm.metrics import psnr
from ldm.pictures import with_channels
from rdm.loading import Loaded
from rdm.retrieval.queries import image_queries, mix, text_queries
from rdm.sampling.canvas import Canvas, open_canvas
from rdm.sampling.conditions import condition_of
from rdm.sampling.given import Picture, name_of
from rdm.sampling.neighbours import retrieved_rows
from rdm.sampling.plain import edited
from rdm.sampling.request import Request, check_tokens
from rdm.sampling.samples import Samples
from rdm.sampling.values import NEGATIVE_WEIGHT, REPEATS, check_arguments
from rdm.sampling.ways import texts


def edit(
    loaded: Loaded,
    picture: Picture,
    n: int = 1,
    *,
    prompt: str | None = None,
    class_name: str | None = None,
    k: int | None = None,
    seed: int = 0,
    mask: Picture | None = None,
    outpaint: Sequence[int] | None = None,
    size: Size | None = None,
    strength: float | None = None,
    repeats: int = REPEATS,
    invert: bool = False,
    tokens: str = "neighbours",
    negative: str | None = None,
    negative_weight: float = NEGATIVE_WEIGHT,
) -> Request:
    """Requests n images that are edits of a picture.

    The neighbours are those of the prompt. Without a prompt, they are those of the kept part of the picture. During an
    inversion the context is the picture's own neighbours, and there is no guidance. If an inversion has no prompt, the
    images are sampled with the same context and without guidance, which reconstructs the picture. A picture whose sides
    do not divide by what the model needs is padded for the model, and the images are cut back to its size.

    Args:
        loaded: model and database.
        picture: the picture, or its file.
        n: number of images.
        prompt: the text that neighbours are looked up with, or that a plain model reads.
        class_name: the name or number of the class that a plain class-conditional model sees.
        k: number of neighbours of each image.
        seed: the seed of the first image.
        mask: see :func:`rdm.sampling.canvas.open_canvas`; this also holds for the arguments up to ``invert``.
        outpaint: see there.
        size: see there.
        strength: see there.
        repeats: see there.
        invert: see there.
        tokens: what the context consists of, see :func:`rdm.sampling.ways.texts`.
        negative: a negative prompt. It enters the query vector for the neighbours with a negative weight.
        negative_weight: the magnitude of this weight; the prompt or the picture has the weight 1.

    Raises:
        FileNotFoundError: the picture or the mask does not exist.
        ValueError: the model is autoregressive, the mask has another size, or options contradict each other.
    """
    weight = {"negative": negative, "negative_weight": negative_weight}
    check_arguments(n=n, prompt=prompt, class_name=class_name, k=k, seed=seed, **weight)
    check_tokens(tokens, ("neighbours", "text", "both"))
    if prompt is None and tokens != "neighbours":
        raise ValueError(f"got tokens '{tokens}' without a prompt, expected 'neighbours'; give a prompt")
    model = loaded.model if loaded.edits and not invert else loaded.diffusion
    canvas = open_canvas(
        picture, mask=mask, outpaint=outpaint, size=size, strength=strength, repeats=repeats, invert=invert,
        value_range=loaded.data.value_range,
    )  # fmt: skip
    if loaded.is_plain:
        others = {"k": k, "negative": negative, "tokens": tokens if tokens == "both" else None}
        return edited(loaded, canvas, n, prompt, class_name, seed=seed, **others)
    if class_name is not None:
        raise ValueError(f"got class_name='{class_name}' for a retrieval-augmented model; give a prompt")
    k, embedder = k or loaded.k, loaded.retriever.embedder
    if invert:
        own = loaded.retriever(image_queries(embedder, canvas.picture.to(model.device)), k)
        canvas = with_inversion(loaded, canvas, own.rows[0].tolist())
    if prompt is not None:
        options: dict[str, Any] = {"tokens": tokens, **weight}
        return replace(texts(loaded, [prompt] * n, k=k, seed=seed, **options), canvas=canvas)
    query = image_queries(embedder, canvas.visible().to(model.device))
    asked: dict[str, Any] = {"way": "edit", "k": k, **loaded.retriever.about}
    if negative is not None:
        query = mix([query, text_queries(embedder, [negative])], [1.0, -negative_weight])
        asked |= weight
    queries = query.expand(n, -1)
    retrieved, seeds = loaded.retriever(queries, k), range(seed, seed + n)
    return Request(retrieved, [name_of(picture)] * n, seeds, asked, queries=queries, canvas=canvas)


def with_inversion(loaded: Loaded, canvas: Canvas, rows: Sequence[int]) -> Canvas:
    """Returns the canvas with the given database rows as the context of the inversion."""
    neighbours = retrieved_rows(loaded, np.array([rows], dtype=np.int64), np.ones((1, len(rows)), np.float32))
    context = condition_of(loaded, neighbours, tuple(canvas.fitted(loaded.diffusion).picture.shape[2:]))
    return replace(canvas, context=context, about={**canvas.about, "inverted_with_rows": list(rows)})


def fidelity(samples: Samples, loaded: Loaded) -> tuple[float, float]:
    """Returns the PSNR between the first image and the edited picture, and that of the first stage's reconstruction.

    Both are in dB over all pixels. The second one is the PSNR that the first stage reaches without sampling.

    Raises:
        ValueError: the samples are not edits of a picture.
    """
    if samples.request.canvas is None:
        raise ValueError("got samples of a request without a picture, expected samples of an edit")
    canvas, model = samples.request.canvas, loaded.diffusion
    picture, fitted = with_channels(canvas.picture, model.image_channels), canvas.fitted(model).picture
    alone = model.to_image(model.to_latent(fitted.to(model.device))).clamp(-1, 1).cpu()
    alone = alone[..., : picture.shape[2], : picture.shape[3]]
    return float(psnr(samples.images[:1], picture)), float(psnr(alone, picture))
