"""Map-style image datasets: what they share, and folders of files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ldm.data.decode import decode_image

log = logging.getLogger(__name__)

METADATA = ("id", "caption", "class_id", "uri", "licence", "attribution")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageDataset(Dataset[dict[str, Any]], ABC):
    """Pictures by number.

    An item is `{"image": [3, size, size] float32 in [-1, 1]}` plus strings: `id` (unique), `caption`, `class_id`,
    `uri`, `licence`, `attribution`, each empty where unknown, and whatever else the source knows.

    A picture that cannot be read is logged with its name and the next good one (cyclically) is given in its place,
    with that one's own `id`; `max_broken` such pictures are tolerated, counted separately in each loader worker.
    """

    def __init__(self, size: int, max_broken: int = 10) -> None:
        """Take the side of the delivered pictures in pixels and the number of broken ones to tolerate.

        Raises:
            ValueError: `size` is below 1 or `max_broken` below 0.
        """
        if size < 1 or max_broken < 0:
            raise ValueError(
                f"got size={size}, max_broken={max_broken}; expected size >= 1 pixel and max_broken >= 0"
            )
        self.size = size
        self.max_broken = max_broken
        self._broken: dict[int, str] = {}

    @abstractmethod
    def __len__(self) -> int:
        """The number of pictures, broken ones included."""

    @abstractmethod
    def uri(self, index: int) -> str:
        """Where picture `index` comes from; names it in messages."""

    @abstractmethod
    def metadata(self, index: int) -> dict[str, str]:
        """The strings of item `index`, without decoding its picture."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded file of picture `index`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`, or the next good one after it.

        Raises:
            IndexError: `index` is out of range.
            ValueError: more than `max_broken` pictures are broken; names them.
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
        """Item `index`, or None where it is broken."""
        if index in self._broken:
            return None
        try:
            return {"image": decode_image(self.read(index), self.size), **self.metadata(index)}
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

    def _broken_names(self) -> str:
        return ", ".join(self._broken.values())


class ImageFolder(ImageDataset):
    """Every picture under a folder, sorted by path; the first folder below the root is the class.

    `cat.txt` beside `cat.jpg` is its caption.
    """

    def __init__(self, root: str, size: int, max_broken: int = 10) -> None:
        """List the pictures under `root`.

        Raises:
            FileNotFoundError: `root` is not a folder or holds no picture.
        """
        super().__init__(size, max_broken)
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"no image folder at {root!r}; correct `root` in the data config")
        found = (path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self.names = sorted(path.relative_to(self.root).as_posix() for path in found)
        if not self.names:
            raise FileNotFoundError(
                f"no image below {root!r}; expected files ending in {', '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.names)

    def uri(self, index: int) -> str:
        """The path of the file."""
        return (self.root / self.names[index]).as_posix()

    def metadata(self, index: int) -> dict[str, str]:
        """`id` is the path below the root."""
        name = Path(self.names[index])
        text = self.root / name.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        class_id = name.parts[0] if len(name.parts) > 1 else ""
        return complete(
            {"id": name.as_posix(), "caption": caption, "class_id": class_id, "uri": self.uri(index)}
        )

    def read(self, index: int) -> bytes:
        """The file."""
        return (self.root / self.names[index]).read_bytes()


def complete(known: dict[str, str]) -> dict[str, str]:
    """The metadata that every item carries, empty where unknown, and the further entries of `known`."""
    return {**dict.fromkeys(METADATA, ""), **known}


def expand_files(files: str | Iterable[str], suffix: str) -> list[Path]:
    """Resolve files, glob patterns and folders (their files ending in `suffix`) to paths, sorted within each entry.

    Raises:
        FileNotFoundError: an entry matches no file.
    """
    found: list[Path] = []
    for entry in [files] if isinstance(files, str) else files:
        path = Path(entry)
        if path.is_dir():
            matches = sorted(path.glob(f"*{suffix}"))
        elif path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor)
            matches = (
                sorted(anchor.glob(path.relative_to(anchor).as_posix()))
                if any(c in entry for c in "*?[")
                else []
            )
        if not matches:
            raise FileNotFoundError(
                f"no {suffix} file at {entry!r}; correct the data config or run from the project root"
            )
        found += matches
    return found
