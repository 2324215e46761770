"""Pictures in tar shards, in webdataset's convention: files of a sample share a key (`0001.jpg`, `0001.json`)."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.data.classes import Classes, numbered_classes
from ldm.data.decode import Size
from ldm.data.images import SUFFIXES, ImageDataset, complete, expand_files
from ldm.files import parsed_json

LOG = logging.getLogger(__name__)

_JSON_KEYS = {
    "caption": ("caption", "text"),
    "class_id": ("class_id", "class", "label"),
    "uri": ("url", "uri"),
    "licence": ("license", "licence"),
    "attribution": ("attribution", "author"),
}
_DIGITS = 6  # of the numbers in a range of shards
_CLASS_BYTES = 65536  # in the longest name of a class
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class _Sample:
    """A sample of a shard; `parts` holds the offset and the length in bytes of each of its files, by extension.

    `class_id` is the content of its file `cls`.
    """

    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    class_id: str = ""


class WebDatasetImages(ImageDataset):
    """The pictures in tar shards, with random access.

    The shards are listed once, which reads only their headers and classes; reading a picture then needs one seek. `txt`
    is the caption, `cls` the class; `json` can hold caption, class, url, license and attribution. Classes that are
    whole numbers are the numbers of classes, others are numbered in their sorted order. The `id` is
    `<shard stem>/<key>`.
    """

    def __init__(self, shards: str | Iterable[str], size: Size, max_broken: int = 10, **options: Any) -> None:
        """Lists the samples of the shards.

        Args:
            shards: a tar file, a folder of them, a glob pattern, a numbered range as in `train-{000..146}.tar`,
                or a list of these.
            size: see :class:`ImageDataset`.
            max_broken: number of unreadable pictures to tolerate.
            options: `keep`, `class_list`, `channels` and `value_range` of :class:`ImageDataset`.

        Raises:
            FileNotFoundError: there is no such shard.
            ValueError: a shard is not an uncompressed tar file, or no shard has a picture.
        """
        super().__init__(size, max_broken, **options)
        entries = [shards] if isinstance(shards, str) else shards
        self.shards = expand_files([name for entry in entries for name in _expand_range(entry)], ".tar")
        listed = [list(_samples(shard)) for shard in self.shards]
        self._samples = [sample for samples in listed for sample in samples]
        several = [sample for sample in self._samples if len(_pictures(sample)) > 1]
        if several:
            example = f"{several[0].key} ({', '.join(_pictures(several[0]))})"
            LOG.warning(
                "%d samples have several pictures, of which the first is read, such as %s", len(several), example
            )
        self._ends: list[int] = []
        for samples in listed:
            self._ends.append(len(samples) + (self._ends[-1] if self._ends else 0))
        if not self._samples:
            names = ", ".join(shard.name for shard in self.shards)
            raise ValueError(f"no image in {names}; expected members ending in {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self._samples)

    def uri(self, index: int) -> str:
        """Returns `<shard name>#<key>`."""
        return f"{self._shard(index).name}#{self._samples[index].key}"

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the metadata in the other files of the sample.

        Raises:
            ValueError: one of these files is not UTF-8, or `json` is not a JSON object.
        """
        known = {"id": f"{self._shard(index).stem}/{self._samples[index].key}", "uri": self.uri(index)}
        if text := self._member(index, "json"):
            fields = parsed_json(text)
            if not isinstance(fields, dict):
                raise ValueError(f"json member holds a {type(fields).__name__}, expected an object")
            for entry, names in _JSON_KEYS.items():
                value = next((fields[name] for name in names if fields.get(name) is not None), None)
                if value is not None:
                    known[entry] = str(value)
        for entry, extension in (("caption", "txt"), ("class_id", "cls")):
            if text := self._member(index, extension):
                known[entry] = text.decode("utf-8-sig").strip()
        return complete(known)

    def class_ids(self) -> Iterable[str]:
        """Returns the classes of all pictures. Those in `json` are read now, at their first use."""
        for index, sample in enumerate(self._samples):
            if sample.class_id or "json" not in sample.parts:
                yield sample.class_id
                continue
            with contextlib.suppress(ValueError):  # a broken sample, which its item reports
                yield self.metadata(index)["class_id"]

    def numbered(self) -> Classes:
        """Returns the classes with their numbers, which are their names if all are whole numbers."""
        return numbered_classes(self.class_ids())

    def read(self, index: int) -> bytes:
        """Returns the encoded picture."""
        return self._member(index, _pictures(self._samples[index])[0])

    def _shard(self, index: int) -> Path:
        return self.shards[bisect_right(self._ends, range(len(self))[index])]

    def _member(self, index: int, extension: str) -> bytes:
        """Returns the content of a file of a sample; it is empty if the sample has no such file."""
        if extension not in self._samples[index].parts:
            return b""
        start, length = self._samples[index].parts[extension]
        with self._shard(index).open("rb") as file:
            file.seek(start)
            return file.read(length)


def _expand_range(entry: str) -> list[str]:
    """Returns the three names for `a{08..10}.tar`; a name without a range is returned unchanged."""
    match = _RANGE.search(entry)
    if match is None:
        return [entry]
    first, last = match.groups()
    if max(len(first), len(last)) > _DIGITS:
        raise ValueError(f"shards: got the range '{entry}', expected numbers of at most {_DIGITS} digits; correct it")
    numbers = range(int(first), int(last) + 1)
    return [f"{entry[: match.start()]}{number:0{len(first)}d}{entry[match.end() :]}" for number in numbers]


def _samples(shard: Path) -> Iterator[_Sample]:
    """Yields the samples of a shard that have a picture, in order; the files of a sample must be adjacent."""
    current = _Sample("")
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if key != current.key:
                    if _pictures(current):
                        yield current
                    current = _Sample(key)
                current.parts[extension.lower()] = (member.offset_data, member.size)
                if extension.lower() == "cls" and member.size > _CLASS_BYTES:
                    got = f"got a class of {member.size} bytes for {key}"
                    raise ValueError(f"{shard}: {got}, expected at most {_CLASS_BYTES}; correct it")
                if extension.lower() == "cls" and (content := archive.extractfile(member)):
                    current.class_id = sys.intern(content.read().decode("utf-8-sig", "replace").strip())
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard} is not a complete uncompressed tar file ({error}); unpack or fetch it again"
        ) from error
    if _pictures(current):
        yield current


def _pictures(sample: _Sample) -> list[str]:
    """Returns the extensions of the pictures of a sample."""
    return [extension for extension in sample.parts if f".{extension}" in SUFFIXES]
