"""The picture that is edited: read with its mask, extended, handed to the model, and put back over what was made."""

from __future__ import annotations

import hashlib
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
from rdm.loading import Loaded


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture, and where it is painted anew.

    Attributes:
        picture: ``[1, 3, H, W]`` in [-1, 1].
        paint: ``[1, 1, H, W]``, 1 where it is painted anew, 0 where it stays, between them a blend of both; None paints
            all of it anew.
        context: what the model looks at while it inverts the picture, ``[1, K, D]``.
        options: ``strength``, ``repeats`` and ``invert`` of :class:`Edit`.
    """

    picture: Tensor
    paint: Tensor | None
    context: Tensor | None
    options: Mapping[str, Any]

    def edit(self, model: Any) -> Edit:
        """Returns what the model is to begin with and to keep.

        A cell of the latent stays where all of its pixels do: where the mask is darker than half.
        """
        keep = None
        if self.paint is not None:
            keep = 1 - F.max_pool2d((self.paint >= 0.5).float(), model.first_stage_model.downsampling)
            keep = keep.to(model.device)
        return Edit(model.to_latent(self.picture.to(model.device)), keep, context=self.context, **self.options)

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


def describe(
    picture: str | Path,
    *,
    mask: str | Path | None = None,
    outpaint: Sequence[int] | None = None,
    size: int | None = None,
    strength: float | None = None,
    repeats: int = Edit.repeats,
    invert: bool = False,
) -> dict[str, Any]:
    """Returns what is done to a picture, as a record keeps it.

    Args:
        picture: a file.
        mask: a file of a picture of the same size, white where the picture is painted anew.
        outpaint: pixels by which the picture is extended to the left, at the top, to the right and at the bottom.
        size: take the centre square of the picture and the mask and scale it to so many pixels a side.
        strength: see :class:`Edit`; 1 where it is not given.
        repeats: see :class:`Edit`.
        invert: see :class:`Edit`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: none or several of these at once.
    """
    ways = {"mask": mask is not None, "outpaint": outpaint is not None, "invert": invert}
    given = [name for name, there in ways.items() if there]
    if len(given) > 1 or not (given or strength is not None):
        got = " and ".join(given) or "none"
        raise ValueError(f"got {got}, expected one of mask, outpaint and invert, or a strength alone")
    if outpaint is not None and (len(outpaint) != 4 or min(outpaint) < 0 or not any(outpaint)):
        raise ValueError(f"outpaint: got {list(outpaint)}, expected pixels at the left, top, right and bottom")
    return {
        "picture": str(picture),
        "picture_sha256": hashlib.sha256(_read(picture)).hexdigest(),
        "mask": None if mask is None else str(mask),
        "mask_sha256": None if mask is None else hashlib.sha256(_read(mask)).hexdigest(),
        "outpaint": None if outpaint is None else list(outpaint),
        "size": size,
        "strength": 1.0 if strength is None else strength,
        "repeats": repeats,
        "invert": invert,
        "inverted_with_rows": None,
    }


def open_canvas(asked: Mapping[str, Any], loaded: Loaded) -> Canvas:
    """Returns the canvas of a description, see :func:`describe`.

    Raises:
        FileNotFoundError: a file is gone.
        ValueError: it has changed or is no picture, the mask has another size, or the model cannot make one of this
            size or edits nothing.
    """
    model, picture = loaded.diffusion, _open(asked["picture"], asked["picture_sha256"], asked["size"])
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    paint = None
    if asked["mask"] is not None:
        mask = _open(asked["mask"], asked["mask_sha256"], asked["size"])
        if mask.size != picture.size:
            got, expected = ("x".join(map(str, each.size)) for each in (mask, picture))
            raise ValueError(f"mask {asked['mask']} has {got} pixels, expected the {expected} of {asked['picture']}")
        with Image.open(asked["mask"]) as opened:
            if opened.has_transparency_data and opened.convert("RGBA").getextrema()[3][0] < 255:
                raise ValueError(f"mask {asked['mask']} is transparent in places, expected white and black ones alone")
        paint = torch.from_numpy(np.array(mask.convert("L")))[None, None].float() / 255
    if asked["outpaint"] is not None:
        left, top, right, bottom = asked["outpaint"]
        sides = (left, right, top, bottom)
        paint = F.pad(torch.zeros(1, 1, *pixels.shape[2:]), sides, value=1.0)
        pixels = F.pad(pixels, sides, mode="replicate")
    try:
        loaded.shape_of(*pixels.shape[2:])
    except ValueError as error:
        raise ValueError(f"{error}; change outpaint or size") from error
    context = None
    if asked["inverted_with_rows"] is not None:
        rows = np.array([asked["inverted_with_rows"]], dtype=np.int64)
        neighbours = torch.from_numpy(loaded.retriever.database.embeddings(rows)).to(model.device)
        context = model.conditioner(neighbours, include_query=False)
    return Canvas(pixels, paint, context, {name: asked[name] for name in ("strength", "repeats", "invert")})


def _open(path: str, sha256: str, size: int | None) -> Image.Image:
    """Returns the picture in a file, which must be the one of that hash."""
    data = _read(path)
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{path} has sha256 {found}, the image was made with {sha256}; give that one")
    try:
        picture = open_picture(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return picture if size is None else centre_square(picture, size)


def _read(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no picture at {path}")
    return Path(path).read_bytes()
