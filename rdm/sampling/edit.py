"""Edits of a picture: inpainting, outpainting, image-to-image and DDIM inversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.decode import Size
from ldm.metrics import psnr
from ldm.pictures import with_channels
from rdm.loading import Loaded
from rdm.retrieval.queries import image_queries, mix, text_queries
from rdm.sampling.canvas import Canvas, open_canvas
from rdm.sampling.conditions import condition_of
from rdm.sampling.request import Request
from rdm.sampling.samples import Samples
from rdm.sampling.settings import NEGATIVE_WEIGHT, REPEATS
from rdm.sampling.ways import retrieved_rows, texts


def edit(
    loaded: Loaded,
    picture: str | Path,
    n: int = 1,
    *,
    prompt: str | None = None,
    k: int | None = None,
    seed: int = 0,
    mask: str | Path | None = None,
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
        picture: the file of the picture.
        n: number of images.
        prompt: the text that neighbours are looked up with.
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
    k, model, embedder = k or loaded.k, loaded.diffusion, loaded.retriever.embedder
    canvas = open_canvas(
        picture,
        mask=mask,
        outpaint=outpaint,
        size=size,
        strength=strength,
        repeats=repeats,
        invert=invert,
        value_range=loaded.data.value_range,
    )
    if invert:
        own = loaded.retriever(image_queries(embedder, canvas.picture.to(model.device)), k)
        canvas = with_inversion(loaded, canvas, own.rows[0].tolist())
    if prompt is not None:
        options: dict[str, Any] = {"tokens": tokens, "negative": negative, "negative_weight": negative_weight}
        return replace(texts(loaded, [prompt] * n, k=k, seed=seed, **options), canvas=canvas)
    if tokens != "neighbours":
        raise ValueError(f"got tokens '{tokens}' without a prompt, expected 'neighbours'; give a prompt")
    query = image_queries(embedder, canvas.visible().to(model.device))
    asked: dict[str, Any] = {"way": "edit", "k": k, **loaded.retriever.about}
    if negative:
        query = mix([query, text_queries(embedder, [negative])], [1.0, -negative_weight])
        asked |= {"negative": negative, "negative_weight": negative_weight}
    queries = query.expand(n, -1)
    retrieved, seeds = loaded.retriever(queries, k), range(seed, seed + n)
    return Request(retrieved, [str(picture)] * n, seeds, asked, queries=queries, canvas=canvas)


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
