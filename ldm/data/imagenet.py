"""CompVis' names for ImageNet: class folders below ``ILSVRC2012_train/data`` and ``ILSVRC2012_validation/data``.

Nothing is downloaded. ``synset_human.txt`` beside ``data`` names the classes, and ``filelist.txt`` lists the pictures,
if these files are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.images import ImageFolder
from ldm.data.theirs import check_size, say_what_is_left_out
from ldm.util import nearest

CONFIG = ("size", "random_crop", "keep_orig_class_label", "sub_indices")


class ImageNetBase(ImageFolder):
    """The pictures of a split.

    Args:
        process_images: must be true: items hold pictures.
        data_root: the folder that holds the folder of the split; if not given, ``autoencoders/data`` in the user's
            cache (``$XDG_CACHE_HOME`` or ``~/.cache``).
        config: ``size``, the side of the returned pictures in pixels; ``random_crop`` has no effect.

    Raises:
        FileNotFoundError: the folder of the split is not there.
        ValueError: there is no size, or the config asks for a part of the classes.
    """

    split = "ILSVRC2012_train"

    def __init__(
        self, process_images: bool = True, data_root: str | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        name, given = type(self).__name__, dict(config or {})
        if unknown := [key for key in given if key not in CONFIG]:
            raise ValueError(f"{name}: unknown key '{unknown[0]}' in config{nearest(unknown[0], CONFIG)}")
        if not process_images:
            raise ValueError(f"{name}: got process_images={process_images}, expected true; leave it out")
        if given.get("sub_indices") is not None:
            raise ValueError(
                f"{name}: got sub_indices, expected all classes; for a part, use ldm.data.ImageFolder with classes: "
                "[first, end]"
            )
        say_what_is_left_out(name, random_crop=given.get("random_crop"))
        self._open(data_root, check_size(name, given.get("size")))

    def _open(self, data_root: str | None, size: int) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "autoencoders" / "data"
        folder = (Path(data_root) if data_root else cache) / self.split
        beside = {"files": folder / "filelist.txt", "class_names": folder / "synset_human.txt"}
        there: dict[str, Any] = {option: str(file) for option, file in beside.items() if file.is_file()}
        super().__init__(str(folder / "data"), size, **there)


class ImageNetTrain(ImageNetBase):
    """The training pictures."""


class ImageNetValidation(ImageNetBase):
    """The validation pictures."""

    split = "ILSVRC2012_validation"


class ImageNetSR(ImageNetBase):
    """The pictures of a split, for first stages. There is no ``LR_image`` as for super-resolution.

    Args:
        size: side of the returned pictures in pixels.
        degradation: without effect, like the next four: pictures are whole and sharp.
        downscale_f: see there.
        min_crop_f: see there.
        max_crop_f: see there.
        random_crop: see there.
        data_root: see :class:`ImageNetBase`.
    """

    def __init__(
        self,
        size: int | None = None,
        degradation: str | None = None,
        downscale_f: int = 4,  # noqa: ARG002 (CompVis' signature)
        min_crop_f: float = 0.5,  # noqa: ARG002
        max_crop_f: float = 1.0,  # noqa: ARG002
        random_crop: bool = True,
        data_root: str | None = None,
    ) -> None:
        name = type(self).__name__
        say_what_is_left_out(name, degradation=degradation, random_crop=random_crop)
        self._open(data_root, check_size(name, size))


class ImageNetSRTrain(ImageNetSR):
    """The training pictures."""


class ImageNetSRValidation(ImageNetSR):
    """The validation pictures."""

    split = "ILSVRC2012_validation"
