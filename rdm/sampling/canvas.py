"""The canvas of an edit: reads a picture and its mask, extends them, and pastes kept pixels over the sampled images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.data.decode import Size, centre_crop, open_picture, short_size
from ldm.files import located
from ldm.models.diffusion.condition import Hybrid
from ldm.models.diffusion.editing import Edit
from ldm.pictures import from_uint8, with_channels
from rdm.sampling.settings import REPEATS


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture and the part of it that is repainted.

    Attributes:
        picture: ``[1, 3, H, W]`` in [-1, 1].
        paint: the mask, ``[1, 1, H, W]`` in [0, 1]: 1 repaints a pixel, 0 keeps it, values between blend both; None
            repaints the whole picture.
        about: the options of the edit and the hashes of the files, as stored in the record; see :func:`open_canvas`.
        context: the context of the model during the inversion of the picture, ``[1, K, D]`` or a hybrid with it.
    """

    picture: Tensor
    paint: Tensor | None
    about: Mapping[str, Any]
    context: Tensor | Hybrid | None = None

    def fitted(self, model: Any) -> Canvas:
        """Returns the canvas with the channels of a model's images, and sides that the model divides.

        The picture and the mask are continued at the right and at the bottom by their edge pixels. :meth:`paste` of
        this canvas cuts the images of the fitted one back.
        """
        (height, width), multiple = self.picture.shape[2:], model.side_multiple
        around = (0, -width % multiple, 0, -height % multiple)
        paint = None if self.paint is None else F.pad(self.paint, around, mode="replicate")
        picture = with_channels(self.picture, model.image_channels)
        return replace(self, picture=F.pad(picture, around, mode="replicate"), paint=paint)

    def edit(self, model: Any) -> Edit:
        """Returns the edit for the sampler: the latent of the picture and the latent cells to keep.

        The picture must fit the model, see :meth:`fitted`. A latent cell is kept if all of its pixels are kept, which
        means that the mask is below 0.5 there.
        """
        keep = None
        if self.paint is not None:
            keep = 1 - F.max_pool2d((self.paint >= 0.5).float(), model.first_stage_model.downsampling)
            keep = keep.to(model.device)
        options = {name: self.about[name] for name in ("strength", "repeats", "invert")}
        return Edit(model.to_latent(self.picture.to(model.device)), keep, context=self.context, **options)

    def paste(self, images: Tensor) -> Tensor:
        """Returns images with the kept pixels of the picture pasted over them, weighted by the mask.

        The first stage reconstructs the kept part with a small error. Pasting removes this error where the mask is
        black. A mask with soft edges blends the two across the seam.

        Args:
            images: ``[B, C, H', W']`` of the size of the picture or larger; only ``[B, C, H, W]`` of them is used.
        """
        images = images[..., : self.picture.shape[2], : self.picture.shape[3]]
        picture = with_channels(self.picture, images.shape[1]).expand_as(images)
        return images if self.paint is None else torch.lerp(picture, images, self.paint)

    def visible(self) -> Tensor:
        """Returns the kept part of the picture, ``[1, 3, h, w]``.

        The result is the smallest rectangle around the kept pixels. Repainted pixels in it have the mean colour of the
        kept ones.

        Raises:
            ValueError: the mask keeps no pixel.
        """
        if self.paint is None:
            return self.picture
        stays = self.paint[0, 0] < 0.5
        if not stays.any():
            raise ValueError("the mask is white all over, so no part of the picture has neighbours; give a prompt")
        rows, columns = (stays.any(axis).nonzero().flatten() for axis in (1, 0))
        colour = self.picture[..., stays].mean(-1)[..., None, None]
        shown = torch.where(stays, self.picture, colour)
        return shown[..., int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def open_canvas(
    picture: str | Path,
    *,
    mask: str | Path | None = None,
    outpaint: Sequence[int] | None = None,
    size: Size | None = None,
    strength: float | None = None,
    repeats: int = REPEATS,
    invert: bool = False,
    value_range: Sequence[float] | None = None,
    inverted_with_rows: Sequence[int] | None = None,
    picture_sha256: str | None = None,
    mask_sha256: str | None = None,
) -> Canvas:
    """Returns the canvas of a picture in a file. Every file is read once.

    Args:
        picture: the file of the picture.
        mask: the file of a mask of the same size; it is white where the picture is repainted.
        outpaint: numbers of pixels by which the picture is extended at the left, top, right and bottom.
        size: if given, the picture and the mask are cropped to their centre and scaled to this size in pixels, which is
            the side of a square, or height and width.
        strength: see :class:`Edit`; None stands for 1.
        repeats: see :class:`Edit`.
        invert: see :class:`Edit`.
        value_range: the values of black and white in a grey picture with more than 8 bits, see
            :func:`ldm.data.decode.decode_image`.
        inverted_with_rows: the database rows that the model sees during the inversion; stored in the record.
        picture_sha256: the hash of the picture in a record; the file must have it.
        mask_sha256: the hash of the mask in a record; the file must have it.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: none or several of mask, outpaint and invert are given, a file is not a picture or has another hash,
            or the mask has another size.
    """
    ways = {"mask": mask is not None, "outpaint": outpaint is not None, "invert": invert}
    given = [name for name, there in ways.items() if there]
    if len(given) > 1 or not (given or strength is not None):
        got = " and ".join(given) or "none"
        raise ValueError(f"got {got}, expected one of mask, outpaint and invert, or a strength alone")
    if outpaint is not None and (len(outpaint) != 4 or min(outpaint) < 0 or not any(outpaint)):
        raise ValueError(f"outpaint: got {list(outpaint)}, expected pixels at the left, top, right and bottom")
    image, data = _open(picture, picture_sha256, size, value_range)
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
        "size": None if size is None else short_size(size),
        "strength": 1.0 if strength is None else strength,
        "repeats": repeats,
        "invert": invert,
        "inverted_with_rows": None if inverted_with_rows is None else list(inverted_with_rows),
        **({} if value_range is None else {"value_range": list(value_range)}),
    }
    return Canvas(pixels, paint, about)


def _open(
    path: str | Path, sha256: str | None, size: Size | None, value_range: Sequence[float] | None = None
) -> tuple[Image.Image, bytes]:
    """Returns the picture in a file, cropped and scaled to ``size``, and the bytes of the file."""
    file = located(path)
    if not file.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    data = file.read_bytes()
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(f"{path} has sha256 {found}, the image was made with {sha256}; give that one")
    try:
        picture = open_picture(data, value_range)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return picture if size is None else centre_crop(picture, size), data


def _pixels(picture: Image.Image) -> Tensor:
    """Returns a picture as a tensor ``[1, C, H, W]`` in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])


def _paint(mask: Image.Image, data: bytes, path: str, picture: Image.Image, picture_path: str) -> Tensor:
    """Returns a mask as a tensor ``[1, 1, H, W]`` in [0, 1], after checks of its size and transparency."""
    if mask.size != picture.size:
        got, expected = ("x".join(map(str, each.size)) for each in (mask, picture))
        raise ValueError(f"mask {path} has {got} pixels, expected the {expected} of {picture_path}")
    with Image.open(io.BytesIO(data)) as opened:
        if opened.has_transparency_data and opened.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError(f"mask {path} is transparent in places, expected black and white pixels only")
    return torch.from_numpy(np.array(mask.convert("L")))[None, None].float() / 255
