"""The canvas of an edit: reads a picture and its mask, extends them, and pastes kept pixels over the sampled images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.data.decode import Size, centre_crop, short_size
from ldm.models.diffusion.condition import Hybrid
from ldm.models.diffusion.editing import Edit
from ldm.pictures import from_uint8, with_channels
from rdm.sampling.given import GivenPicture, Picture, open_given
from rdm.sampling.values import REPEATS, check_arguments

LOG = logging.getLogger(__name__)


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
    picture: Picture,
    *,
    mask: Picture | None = None,
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
    """Returns the canvas of a picture. Every file is read once.

    Args:
        picture: the picture, or its file.
        mask: a mask of the same size, or its file; it is white where the picture is repainted.
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
            the mask has another size, or an argument does not accept its value or has no effect.
    """
    check_arguments(outpaint=outpaint, size=size, strength=strength, repeats=repeats, invert=invert, mask=mask)
    ways = {"mask": mask is not None, "outpaint": outpaint is not None, "invert": invert}
    given = [name for name, there in ways.items() if there]
    if len(given) > 1 or not (given or strength is not None):
        got = " and ".join(given) or "none"
        raise ValueError(f"got {got}, expected one of mask, outpaint and invert, or a strength alone")
    given_picture = open_given(picture, picture_sha256, value_range)
    given_mask = None if mask is None else open_given(mask, mask_sha256)
    if not given_picture.is_opaque():
        LOG.warning("%s is transparent in places, which count as white", given_picture.name)
    image = _sized(given_picture, size)
    pixels, paint = _pixels(image), None
    if given_mask is not None:
        paint = _paint(given_mask, size, image, given_picture.name)
    if outpaint is not None:
        left, top, right, bottom = outpaint
        sides = (left, right, top, bottom)
        paint = F.pad(torch.zeros(1, 1, *pixels.shape[2:]), sides, value=1.0)
        pixels = F.pad(pixels, sides, mode="replicate")
    about = {
        "picture": given_picture.file,
        "picture_sha256": given_picture.sha256,
        "mask": None if given_mask is None else given_mask.file,
        "mask_sha256": None if given_mask is None else given_mask.sha256,
        "outpaint": None if outpaint is None else list(outpaint),
        "size": None if size is None else short_size(size),
        "strength": 1.0 if strength is None else strength,
        "repeats": repeats,
        "invert": invert,
        "inverted_with_rows": None if inverted_with_rows is None else list(inverted_with_rows),
        **({} if value_range is None else {"value_range": list(value_range)}),
    }
    return Canvas(pixels, paint, about)


def _sized(given: GivenPicture, size: Size | None) -> Image.Image:
    """Returns a picture, cropped and scaled to ``size``."""
    return given.image if size is None else centre_crop(given.image, size)


def _pixels(picture: Image.Image) -> Tensor:
    """Returns a picture as a tensor ``[1, C, H, W]`` in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])


def _paint(given: GivenPicture, size: Size | None, picture: Image.Image, picture_name: str) -> Tensor:
    """Returns a mask as a tensor ``[1, 1, H, W]`` in [0, 1], after checks of its size and transparency."""
    mask = _sized(given, size)
    if mask.size != picture.size:
        got, expected = ("x".join(map(str, each.size)) for each in (mask, picture))
        raise ValueError(f"mask {given.name} has {got} pixels, expected the {expected} of {picture_name}")
    if not given.is_opaque():
        raise ValueError(f"mask {given.name} is transparent in places, expected black and white pixels only")
    shown, grey = np.array(mask), np.array(mask.convert("L"))
    if (shown != shown[..., :1]).any():
        LOG.warning("mask %s has colours, of which only the brightness counts: white is repainted", given.name)
    if not (grey >= 128).any():
        LOG.warning(
            "mask %s is black all over, or nearly so: nothing is painted anew; white is what is repainted", given.name
        )
    return torch.from_numpy(grey)[None, None].float() / 255
