"""Data sets of taming-transformers that are lists of files, under its names (``taming.data.custom`` and others)."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.data.images import ImageFolder
from ldm.data.theirs import check_size


class CustomTrain(ImageFolder):
    """The pictures in a list of files.

    Args:
        size: side of the returned pictures in pixels.
        training_images_list_file: a text file with the path of a picture on each line: absolute, or from the working
            directory.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: there is no size, or the list is empty.
    """

    def __init__(self, size: int, training_images_list_file: str) -> None:
        super().__init__(".", check_size("CustomTrain", size), files=training_images_list_file)


class CustomTest(ImageFolder):
    """The pictures in a list of files, see :class:`CustomTrain`.

    Args:
        size: side of the returned pictures in pixels.
        test_images_list_file: the list.
    """

    def __init__(self, size: int, test_images_list_file: str) -> None:
        super().__init__(".", check_size("CustomTest", size), files=test_images_list_file)


class FFHQTrain(ImageFolder):
    """The pictures of faces in ``data/ffhq`` that the list ``data/ffhqtrain.txt`` names.

    Args:
        size: side of the returned pictures in pixels.
        keys: without effect: items have all entries.
    """

    listed = "data/ffhqtrain.txt"

    def __init__(self, size: int, keys: Sequence[str] | None = None) -> None:  # noqa: ARG002 (taming's signature)
        super().__init__("data/ffhq", check_size(type(self).__name__, size), files=self.listed)


class FFHQValidation(FFHQTrain):
    """The pictures of faces in ``data/ffhq`` that the list ``data/ffhqvalidation.txt`` names."""

    listed = "data/ffhqvalidation.txt"
