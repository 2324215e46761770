"""Checks before training that a model can read the pictures of its data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset


def check_training_data(
    trainer: Any, key: str, channels: int, remedy: str, *, multiple: int = 1, size: tuple[int, int] | None = None
) -> None:
    """Checks the first picture of every data set that a trainer has opened.

    Args:
        trainer: Lightning's trainer, whose data module has its data sets by name in ``datasets``, as those of this
            project do; others are not checked.
        key: key of a picture in an item.
        channels: number of channels that the model reads.
        remedy: what to change in the model if the pictures shall keep their channels.
        multiple: number of pixels that divides the sides of pictures which the model reads.
        size: height and width of the pictures that the model reads, if it reads no others.

    Raises:
        ValueError: a picture has other channels, sides that do not divide, or another size.
    """
    for name, images in getattr(getattr(trainer, "datamodule", None), "datasets", {}).items():
        item = {} if isinstance(images, IterableDataset) else images[0]
        image = item.get(key) if isinstance(item, Mapping) else None
        if not isinstance(image, Tensor) or image.ndim != 3:
            continue
        found, height, width = image.shape
        where = f"data.params.{name}"
        if found != channels:
            raise ValueError(
                f"{where}: got pictures with {found} channels, expected {channels}, as the model reads them; set "
                f"channels: {channels} in {where}.params, or {remedy}"
            )
        if height % multiple or width % multiple:
            raise ValueError(
                f"{where}: got pictures of {height} x {width} pixels (height x width), expected multiples of "
                f"{multiple}, by which the model reduces them; correct size in {where}.params"
            )
        if size is not None and (height, width) != size:
            raise ValueError(
                f"{where}: got pictures of {height} x {width} pixels (height x width), expected {size[0]} x {size[1]}, "
                f"as the model reads them; correct size in {where}.params"
            )
