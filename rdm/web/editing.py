"""What a user can ask for in the tab Edit, as a request of :func:`rdm.sampling.edit.edit`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.decode import centre_crop
from rdm.sampling.edit import edit
from rdm.sampling.values import ARGUMENTS, REPEATS, check_arguments
from rdm.web.asking import checked_words, settings_of
from rdm.web.drawing import Job
from rdm.web.limits import Limits
from rdm.web.studio import Studio
from rdm.web.uploads import decoded, from_data_url

WAYS = ("inpaint", "outpaint", "vary", "invert")


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """What the tab Edit asks for.

    Attributes:
        way: ``inpaint`` repaints what the mask covers, ``outpaint`` extends the picture, ``vary`` draws all of it anew
            by a strength, and ``invert`` starts from the noise that leads to the picture.
        picture: the picture.
        mask: what is repainted, white on black, for ``inpaint``. It has the size of the picture after ``side``.
        side: the picture is cropped to its centre and scaled to a square of this side; None takes that of training.
        outpaint: pixels at the left, top, right and bottom.
        strength: how much is drawn anew, 0 to 1, for ``inpaint`` and ``vary``.
        repeats: how often each step is sampled, for ``inpaint`` and ``outpaint``.
        prompt: the text whose neighbours the model sees; without one, those of the picture.
        n: number of images.
        place: the database or the part of it that neighbours come from; the first database if it is None.
        k: see :class:`rdm.web.asking.Ask`; this also holds for ``seed``, ``tokens`` and ``settings``.
    """

    way: str
    picture: Image.Image | None
    mask: Image.Image | None = None
    side: int | None = None
    outpaint: Sequence[int] = (0, 0, 0, 0)
    strength: float | None = None
    repeats: int = REPEATS
    prompt: str | None = None
    n: int = 1
    place: str | None = None
    k: int | None = None
    seed: int = 0
    tokens: str = "neighbours"
    settings: Mapping[str, Any] = field(default_factory=dict)


def job(studio: Studio, ask: Edit) -> Job:
    """Returns what is drawn.

    Raises:
        ValueError: something is missing, has a value that is not accepted, or exceeds a limit; or the model cannot
            edit.
    """
    if ask.way not in WAYS:
        raise ValueError(f"got the way '{ask.way}', expected {', '.join(WAYS)}")
    if ask.picture is None:
        raise ValueError("got no picture, expected one; upload it, or take one over from another tab")
    place = ask.place or studio.names[0]
    pipeline = studio.pipeline(place)
    side = ask.side or side_of(studio)
    check_arguments(n=ask.n, size=side, k=ask.k, seed=ask.seed)
    ARGUMENTS["repeats"].check("repeats", ask.repeats)
    studio.limits.check(images=ask.n, side=side + 2 * max(map(abs, ask.outpaint)), neighbours=ask.k)
    settings = settings_of(ask.settings)
    settings.check_tokens(ask.tokens)
    words = checked_words(studio, [ask.prompt or ""])
    options: dict[str, Any] = {}
    if ask.way == "inpaint":
        if ask.mask is None or not np.asarray(ask.mask).any():
            raise ValueError("got a picture on which nothing is painted, expected a mask; paint what is to be redrawn")
        options = {"mask": ask.mask, "strength": ask.strength, "repeats": ask.repeats}
    elif ask.way == "outpaint":
        options = {"outpaint": list(ask.outpaint), "repeats": ask.repeats}
    elif ask.way == "vary":
        options = {"strength": ask.strength}
    else:
        options = {"invert": True}
    request = edit(
        pipeline,
        cropped(ask.picture, side),
        ask.n,
        prompt=words[0] if words else None,
        k=ask.k,
        seed=ask.seed,
        tokens=ask.tokens,
        **options,
    )
    return studio.job(place, request, settings)


def side_of(studio: Studio) -> int:
    """Returns the side of the square that pictures are cropped to if none is given: the longer one of training."""
    return int(max(studio.pipeline().data.image_size))


def cropped(picture: Image.Image, side: int) -> Image.Image:
    """Returns the centre of a picture, scaled to a square; a picture of this size is returned as it is."""
    return centre_crop(picture, side)


def mask_of(paint: str, side: int, limits: Limits) -> Image.Image:
    """Returns a mask: white where paint covers at least half of a pixel, else black.

    Args:
        paint: the paint, a PNG file in a data URL.
        side: the side of the mask.
        limits: the limits of the file.

    Raises:
        ValueError: it is no such file, or too large.
    """
    data = from_data_url(paint)
    decoded(data, limits)
    with Image.open(io.BytesIO(data)) as opened:
        opacity = opened.convert("RGBA").getchannel("A").resize((side, side), Image.Resampling.BOX)
    return opacity.point(lambda value: 255 if value >= 128 else 0).convert("RGB")
