"""The canvas of an edit: a picture and its mask are read, extended, given to the model, and pasted over the result."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.data.decode import centre_square, open_picture
from ldm.models.diffusion.editing import Edit
from ldm.pictures import from_uint8
from rdm.sampling.settings import REPEATS


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture and the part of it that is repainted.

    Attributes:
        picture: ``[1, 3, H, W]`` in [-1, 1].
        paint: ``[1, 1, H, W]``, 1 where it is repainted, 0 where it stays, a blend of both between them; None
            repaints all of it.
        about: what is done to the picture and the hashes of the files, as the record keeps it; see :func:`open_canvas`.
        context: what the model sees while it inverts the picture, ``[1, K, D]``.
    """

    picture: Tensor
    paint: Tensor | None
    about: Mapping[str, Any]
    context: Tensor | None = None

    def edit(self, model: Any) -> Edit:
        """Returns what the model is to begin with and to keep.

        A cell of the latent stays where all of its pixels do: where the mask is darker than half.
        """
        keep = None
        if self.paint is not None:
            keep = 1 - F.max_pool2d((self.paint >= 0.5).float(), model.first_stage_model.downsampling)
            keep = keep.to(model.device)
        options = {name: self.about[name] for name in ("strength", "repeats", "invert")}
        return Edit(model.to_latent(self.picture.to(model.device)), keep, context=self.context, **options)

    def paste(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` with the picture's own pixels in their place, as the mask weighs them.

        The first stage gives even the part that stays back with a small error. Where the mask is black, nothing of that
        is left; a mask with soft edges blends across the seam.
        """
        return images if self.paint is None else torch.lerp(self.picture.expand_as(images), images, self.paint)

    def visible(self) -> Tensor:
        """Returns what stays of the picture ``[1, 3, h, w]``: its smallest rectangle, what is not of it in mean colour.

        Raises:
            ValueError: nothing stays.
        """
        if self.paint is None:
            return self.picture
        stays = self.paint[0, 0] < 0.5
        if not stays.any():
            raise ValueError("the mask is white all over, so there is nothing to find neighbours of; give a prompt")
        rows, columns = (stays.any(axis).nonzero().flatten() for axis in (1, 0))
        colour = self.picture[..., stays].mean(-1)[..., None, None]
        shown = torch.where(stays, self.picture, colour)
        return shown[..., int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def open_canvas(
    picture: str | Path,
    *,
    mask: str | Path | None = None,
    outpaint: Sequence[int] | None = None,
    size: int | None = None,
    strength: float | None = None,
    repeats: int = REPEATS,
    invert: bool = False,
    inverted_with_rows: Sequence[int] | None = None,
    picture_sha256: str | None = None,
    mask_sha256: str | None = None,
) -> Canvas:
    """Returns a canvas of a picture in a file; every file is read once.

    Args:
        picture: a file.
        mask: a file with a picture of the same size, white where the picture is repainted.
        outpaint: pixels by which the picture is extended to the left, at the top, to the right and at the bottom.
        size: take the centre square of the picture and the mask and scale it to this side in pixels.
        strength: see :class:`Edit`; 1 where it is not given.
        repeats: see :class:`Edit`.
        invert: see :class:`Edit`.
        inverted_with_rows: rows of the database that the model sees while it inverts the picture, for the record.
        picture_sha256: hash that the picture must have, where it is that of a record.
        mask_sha256: hash that the mask must have, likewise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: none or several of mask, outpaint and invert; a file that is no picture or has changed; or a mask of
            another size.
    """
    ways = {"mask": mask is not None, "outpaint": outpaint is not None, "invert": invert}
    given = [name for name, there in ways.items() if there]
    if len(given) > 1 or not (given or strength is not None):
        got = " and ".join(given) or "none"
        raise ValueError(f"got {got}, expected one of mask, outpaint and invert, or a strength alone")
    if outpaint is not None and (len(outpaint) != 4 or min(outpaint) < 0 or not any(outpaint)):
        raise ValueError(f"outpaint: got {list(outpaint)}, expected pixels at the left, top, right and bottom")
    image, data = _open(picture, picture_sha256, size)
    pixels, paint = _pixels(image), None
    if mask is not None:
        opened, mask_data = _open(mask, mask_sha256, size)
        mask_sha256 = hashlib.sha256(mask_data).hexdigest()
        paint = _paint(opened, mask_data, str(mask), image, str(picture))
    if outpaint is not None:
        left, top, right, bottom = outpaint
        sides = (left, right, top, bottom)
        paint = F.pad(torch.zeros(1, 1, *pixels.shape[2:]), sides, value=1.0)
        pixels = F.pad(pixels, sides, mode="replicate")
    about = {
        "picture": str(picture),
        "picture_sha256": hashlib.sha256(data).hexdigest(),
        "mask": None if mask is None else str(mask),
        "mask_sha256": mask_sha256,
        "outpaint": None if outpaint is None else list(outpaint),
        "size": size,
        "strength": 1.0 if strength is None else strength,
        "repeats": repeats,
        "invert": invert,
        "inverted_with_rows": None if inverted_with_rows is None else list(inverted_with_rows),
    }
    return Canvas(pixels, paint, about)


def _open(path: str | Path, sha256: str | None, size: int | None) -> tuple[Image.Image, bytes]:
    """Returns the picture in a file as it is used, and what the file holds."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no picture at {path}")
    data = Path(path).read_bytes()
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{path} has sha256 {found}, the image was made with {sha256}; give that one")
    try:
        picture = open_picture(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return picture if size is None else centre_square(picture, size), data


def _pixels(picture: Image.Image) -> Tensor:
    """Returns a picture as a tensor ``[1, C, H, W]`` in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])


def _paint(mask: Image.Image, data: bytes, path: str, picture: Image.Image, picture_path: str) -> Tensor:
    """Returns where a mask says that the picture is repainted, ``[1, 1, H, W]`` in [0, 1]."""
    if mask.size != picture.size:
        got, expected = ("x".join(map(str, each.size)) for each in (mask, picture))
        raise ValueError(f"mask {path} has {got} pixels, expected the {expected} of {picture_path}")
    with Image.open(io.BytesIO(data)) as opened:
        if opened.has_transparency_data and opened.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError(f"mask {path} is transparent in places, expected black and white pixels only")
    return torch.from_numpy(np.array(mask.convert("L")))[None, None].float() / 255
