"""Images made of a picture: parts of it painted anew, more around it, variations of it, another thing in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.metrics import psnr
from ldm.models.diffusion.editing import Edit
from rdm.loading import Loaded
from rdm.retrieval.queries import image_queries, mix, text_queries
from rdm.sampling.canvas import describe, open_canvas
from rdm.sampling.samples import Samples, sample_retrieved, sample_texts

SAMPLER = "ddim"  # where none is asked for: an inversion follows its steps, and painting wants many to fit what stays


def edit_picture(
    loaded: Loaded,
    picture: str | Path,
    n: int = 1,
    *,
    k: int,
    seed: int,
    prompt: str | None = None,
    mask: str | Path | None = None,
    outpaint: Sequence[int] | None = None,
    size: int | None = None,
    strength: float | None = None,
    repeats: int = Edit.repeats,
    invert: bool = False,
    tokens: str = "neighbours",
    negative: str | None = None,
    negative_weight: float = 0.5,
    **options: Any,
) -> Samples:
    """Returns n images made of a picture in a file.

    They are painted with the neighbours of the prompt, or, where there is none, of what stays of the picture itself. An
    inversion looks at the picture's own neighbours, without guidance; sampled the same way, which is what happens
    without a prompt, its noise gives the picture back.

    Args:
        loaded: model and database.
        picture: a file.
        n: number of images; image i has seed ``seed + i``.
        k: neighbours of each.
        seed: of the first image.
        prompt: a text.
        mask: see :func:`rdm.sampling.canvas.describe`, like all up to ``invert``.
        outpaint: likewise.
        size: likewise.
        strength: likewise.
        repeats: likewise.
        invert: likewise.
        tokens: the context, see :func:`rdm.sampling.samples.sample_texts`.
        negative: a text that neighbours are looked for away from.
        negative_weight: how far.
        options: see :func:`rdm.sampling.samples.generate`.

    Raises:
        FileNotFoundError: no such picture or mask.
        ValueError: a mask of another size, sides that the model cannot make, or options that contradict each other.
    """
    edit = describe(picture, mask=mask, outpaint=outpaint, size=size, strength=strength, repeats=repeats, invert=invert)
    canvas, embedder = open_canvas(edit, loaded), loaded.retriever.embedder
    if invert:
        own = image_queries(embedder, canvas.picture.to(loaded.model.device))
        edit["inverted_with_rows"] = loaded.retriever(own, k).rows[0].tolist()
    options |= {"edit": edit, "tokens": tokens, "sampler": options.get("sampler") or SAMPLER}
    if prompt is not None:
        options |= {"negative": negative, "negative_weight": negative_weight}
        return sample_texts(loaded, [prompt] * n, k=k, seed=seed, **options)
    if tokens != "neighbours":
        raise ValueError(f"got tokens '{tokens}' without a prompt, expected neighbours; give a prompt")
    query, options["asked"] = image_queries(embedder, canvas.visible().to(loaded.model.device)), {"way": "edit", "k": k}
    if negative:
        query = mix([query, text_queries(embedder, [negative])], [1.0, -negative_weight])
        options["asked"] |= {"negative": negative, "negative_weight": negative_weight}
    if invert:
        options["scale"] = 1.0
    retrieved = loaded.retriever(query.expand(n, -1), k)
    options["queries"] = query.expand(n, -1)
    return sample_retrieved(loaded, retrieved, [str(picture)] * n, range(seed, seed + n), **options)


def fidelity(samples: Samples, loaded: Loaded) -> tuple[float, float]:
    """Returns how near the first image is to the picture it was made of, and how near the first stage alone brings it.

    Both are PSNRs in dB over all pixels.

    Raises:
        ValueError: the samples were not made of a picture.
    """
    if samples.picture is None:
        raise ValueError("got samples that were made of no picture, expected those of edit_picture")
    picture, model = samples.picture[None], loaded.diffusion
    alone = model.to_image(model.to_latent(picture.to(model.device))).clamp(-1, 1).cpu()
    return float(psnr(samples.images[:1], picture)), float(psnr(alone, picture))
