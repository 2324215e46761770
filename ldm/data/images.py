"""The base class of map-style image datasets, and the dataset of a folder of files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ldm.data.captions import Captions
from ldm.data.classes import NO_CLASS, Classes, listed_classes, sorted_classes
from ldm.data.decode import CHANNELS, Size, UnknownRangeError, check_range, decode_image, short_size
from ldm.data.file_parts import UnreachableError
from ldm.data.left_out import pictures_below, say_pages
from ldm.files import located, looked_in, places, read_text

log = logging.getLogger(__name__)

METADATA = ("id", "caption", "class_id", "uri", "licence", "attribution")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageDataset(Dataset[dict[str, Any]], ABC):
    """A dataset of pictures with metadata.

    An item is `{"image": [channels, height, width] float32 in [-1, 1]}` and strings: `id` (unique), `caption`,
    `class_id`, `uri`, `licence` and `attribution`, which are empty if unknown, and further strings that the source has.
    It also has `class_label`, the number of its class (-1 without a class), and `human_label`, a name of the class for
    people.

    The name of a picture that cannot be read is logged. In its place the dataset returns the next readable picture
    (after the last one, the first), with that picture's own `id`. At most `max_broken` such pictures are tolerated;
    each loader worker counts them on its own.
    """

    def __init__(
        self,
        size: Size,
        max_broken: int = 10,
        keep: bool = False,
        class_list: str | Sequence[str] | None = None,
        channels: int = 3,
        value_range: Sequence[float] | None = None,
    ) -> None:
        """Checks and stores the options.

        Args:
            size: size of the returned pictures in pixels: the side of squares, or `[height, width]`. The centre of a
                picture is used, as much of it as has this ratio.
            max_broken: number of unreadable pictures to tolerate.
            keep: keep every decoded item in memory, with 4 bytes per value in each loader worker. This helps if the
                device would otherwise wait until small pictures are decoded.
            class_list: the classes in the order of their numbers, from 0: their names, or a text file with a name in
                each line. If not given, :meth:`numbered` numbers them.
            channels: 3 for red, green and blue, or 1 for grey.
            value_range: `[black, white]`, the values that become -1 and 1 in grey pictures with more than 8 bits.
                Without it, unsigned pictures go from 0 to the largest value of their bits; pictures of signed
                integers, of 32 bits and of floating-point numbers are refused.

        Raises:
            ValueError: an option has another value than described.
        """
        if max_broken < 0 or channels not in CHANNELS:
            raise ValueError(
                f"got max_broken={max_broken}, channels={channels}; expected max_broken >= 0, and 3 or 1 channels"
            )
        check_range(value_range)
        self.size: Size = short_size(size)
        self.channels, self.value_range = channels, value_range
        self.max_broken = max_broken
        self._class_list = class_list
        self.said: set[str] = set()  # what was logged of pictures that are not read as a whole
        self._broken: dict[int, str] = {}
        self._items: dict[int, dict[str, Any]] | None = {} if keep else None

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of pictures, including unreadable ones."""

    @abstractmethod
    def uri(self, index: int) -> str:
        """Returns the origin of picture `index`, which is its name in messages."""

    @abstractmethod
    def metadata(self, index: int) -> dict[str, str]:
        """Returns the strings of item `index` without decoding its picture."""

    def id_of(self, index: int) -> str:
        """Returns the `id` of item `index`."""
        return self.metadata(index)["id"]

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Returns the content of the image file of picture `index`."""

    def class_ids(self) -> Iterable[str]:
        """Returns the classes that are numbered: those of all pictures, in any order and number."""
        return {self.metadata(index)["class_id"] for index in range(len(self))}

    def numbered(self) -> Classes:
        """Returns the classes with their numbers: their places in the sorted order of their names."""
        return sorted_classes(self.class_ids())

    @cached_property
    def classes(self) -> Classes:
        """The classes with their numbers.

        Raises:
            FileNotFoundError: the list of classes is missing.
            ValueError: a class is not in the list.
        """
        return self.numbered() if self._class_list is None else listed_classes(self._class_list, self.class_ids())

    def human_label(self, class_id: str) -> str:
        """Returns a name of a class for people, which is the class itself if no other name is known."""
        return class_id

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns item `index`, or the next item with a readable picture.

        Raises:
            IndexError: `index` is out of range.
            ValueError: more than `max_broken` pictures are unreadable, and the error names them; or the range of a
                picture's values is unknown.
            ldm.data.file_parts.UnreachableError: a URL cannot be read.
        """
        total = len(self)
        if not -total <= index < total:
            raise IndexError(f"got index {index}, expected one of {total} images")
        for offset in range(total):
            item = self._load((index + offset) % total)
            if item is not None:
                return item
        raise ValueError(f"none of the {total} images is readable: {self._broken_names()}")

    def _load(self, index: int) -> dict[str, Any] | None:
        """Returns item `index`, or None if its picture is unreadable."""
        if index in self._broken:
            return None
        if self._items is not None and index in self._items:
            return dict(self._items[index])
        try:
            data = self.read(index)
            image = decode_image(data, self.size, self.channels, self.value_range)
            item = {"image": image, **self.metadata(index)}
            say_pages(data, self.uri(index), self.said)
        except UnknownRangeError as error:
            raise ValueError(f"{self.uri(index)} is {error}") from error
        except UnreachableError:
            raise
        except (OSError, ValueError) as error:
            name = self.uri(index)
            self._broken[index] = name
            log.warning("skipping broken image %s: %s", name, error)
            if len(self._broken) > self.max_broken:
                raise ValueError(
                    f"got {len(self._broken)} broken images, expected at most max_broken={self.max_broken}; "
                    f"repair or remove them, or raise max_broken: {self._broken_names()}"
                ) from error
            return None
        class_id = str(item["class_id"])
        item["class_label"] = self.classes.number(class_id) if class_id else NO_CLASS
        item["human_label"] = self.human_label(class_id)
        if self._items is not None:
            self._items[index] = item
        return dict(item)

    def _broken_names(self) -> str:
        return ", ".join(self._broken.values())


class ImageFolder(ImageDataset):
    """The pictures below a folder, sorted by path, or those in a list of files. Links to folders are followed.

    The first folder of a picture's path below the root is its class. Classes are numbered in the sorted order of their
    folders, as in torchvision and in CompVis' code. A picture without a caption of its own has the name of its class in
    `class_names` as its caption.

    Args:
        root: the folder.
        size: see :class:`ImageDataset`.
        max_broken: see there.
        files: a text file with one path below the root on each line (LSUN's and taming's lists). Its order is kept,
            blank lines are skipped, and the folder is not searched.
        classes: `[first, end]`, the range of class folders to keep, by their number in sorted order, without `end`.
            `[151, 269]` are the dogs in ImageNet's 1000 folders. Numbers count the folders of all listed pictures.
        class_names: a text file with a folder and its name on each line (ImageNet's `n02084071 dog, domestic dog`). The
            name is also the `human_label`.
        captions: where captions come from, in order of preference, see :class:`ldm.data.captions.Captions`. By default,
            the content of `cat.txt` is the caption of `cat.jpg`.
        caption_table: the file of the source `csv`, see there.
        options: `keep`, `class_list`, `channels` and `value_range` of :class:`ImageDataset`.

    Raises:
        FileNotFoundError: the root is not a folder or has no picture, or a text file is missing.
        ValueError: the list is empty, the range is not valid, a class has no name, or the captions cannot be found.
    """

    def __init__(
        self,
        root: str,
        size: Size,
        max_broken: int = 10,
        files: str | None = None,
        classes: Sequence[int] | None = None,
        class_names: str | None = None,
        captions: Sequence[str] = ("txt",),
        caption_table: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(size, max_broken, **options)
        self.root, self.folder = Path(root), located(root)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no image folder at {root!r}{looked_in(root)}; correct `root` in the data config")
        self.names = self._found() if files is None else _lines(files)
        if not self.names:
            raise ValueError(f"files: got the empty list {files!r}, expected one path below {root!r} on each line")
        folders = sorted({folder_of(name) for name in self.names} - {""})
        if classes is not None:
            if len(classes) != 2 or not 0 <= classes[0] < classes[1] <= len(folders):
                raise ValueError(
                    f"classes: got {list(classes)}, expected [first, end] within [0, {len(folders)}], the class folders"
                )
            folders = folders[classes[0] : classes[1]]
            kept = set(folders)
            self.names = [name for name in self.names if folder_of(name) in kept]
        lines = [line.split(maxsplit=1) for line in _lines(class_names)] if class_names else []
        self.class_names = {parts[0]: parts[1] for parts in lines if len(parts) == 2}
        if class_names and (unknown := [folder for folder in folders if folder not in self.class_names]):
            raise ValueError(f"class_names: got no name for class {unknown[0]!r} in {class_names!r}; add its line")
        self.captions = Captions(self.folder, self.names, captions, caption_table)

    def _found(self) -> list[str]:
        names = pictures_below(self.folder, SUFFIXES)
        if not names:
            raise FileNotFoundError(
                f"no image below {str(self.root)!r}; expected files ending in {', '.join(SUFFIXES)}"
            )
        return names

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.names)

    def uri(self, index: int) -> str:
        """Returns the path of the file."""
        return (self.root / self.names[index]).as_posix()

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the strings of an item; `id` is the path below the root."""
        name = self.names[index]
        class_id = folder_of(name)
        caption = self.captions.of(name)[0] or self.class_names.get(class_id, "")
        return complete({"id": Path(name).as_posix(), "caption": caption, "class_id": class_id, "uri": self.uri(index)})

    def class_ids(self) -> Iterable[str]:
        """Returns the class folders of all pictures that are kept."""
        return {folder_of(name) for name in self.names}

    def human_label(self, class_id: str) -> str:
        """Returns the name of a class folder in `class_names`, or the folder."""
        return self.class_names.get(class_id, class_id)

    def read(self, index: int) -> bytes:
        """Returns the content of the file."""
        return (self.folder / self.names[index]).read_bytes()


def folder_of(name: str) -> str:
    """Returns the first folder of a path below the root, or an empty string for a file in the root itself."""
    return name.partition("/")[0] if "/" in name else ""


def _lines(file: str) -> list[str]:
    """Returns the lines of a text file that are not blank."""
    path = located(file)
    if not path.is_file():
        raise FileNotFoundError(f"no list at {file!r}{looked_in(file)}; correct the data config")
    return [line.strip().removeprefix("./") for line in read_text(path).splitlines() if line.strip()]


def complete(known: dict[str, str]) -> dict[str, str]:
    """Returns `known` with an empty string for each entry of `METADATA` that it lacks."""
    return {**dict.fromkeys(METADATA, ""), **known}


def expand_files(files: str | Iterable[str], suffix: str) -> list[Path]:
    """Returns the paths for files, glob patterns and folders (files ending in `suffix`), sorted within each entry.

    Raises:
        FileNotFoundError: an entry matches no file.
    """
    found: list[Path] = []
    for entry in [files] if isinstance(files, str) else files:
        path = located(entry)
        if path.is_dir():
            matches = sorted(path.glob(f"*{suffix}"))
        elif path.is_file():
            matches = [path]
        else:
            matches = next(filter(None, map(_globbed, places(entry))), [])
        if not matches:
            raise FileNotFoundError(f"no {suffix} file at {entry!r}{looked_in(entry)}; correct the data config")
        found += matches
    return found


def _globbed(path: Path) -> list[Path]:
    """Returns the paths that a glob pattern matches, sorted; none for a path that is no pattern."""
    anchor = Path(path.anchor)
    return sorted(anchor.glob(path.relative_to(anchor).as_posix())) if any(c in str(path) for c in "*?[") else []
