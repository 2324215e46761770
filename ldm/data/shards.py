"""Pictures in tar shards, in webdataset's convention: files of a sample share a key (`0001.jpg`, `0001.json`)."""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ldm.data.classes import Classes, numbered_classes
from ldm.data.decode import Size
from ldm.data.file_parts import FileParts, is_url
from ldm.data.images import SUFFIXES, ImageDataset, complete
from ldm.data.shard_lists import Sample, found_shards, lists, sample_of, stem
from ldm.data.shard_order import ShardOrder
from ldm.files import parsed_json

LOG = logging.getLogger(__name__)

_JSON_KEYS = {
    "caption": ("caption", "text"),
    "class_id": ("class_id", "class", "label"),
    "uri": ("url", "uri"),
    "licence": ("license", "licence"),
    "attribution": ("attribution", "author"),
}
_BUFFER = 1000  # of shards at URLs


class WebDatasetImages(ImageDataset):
    """The pictures in tar shards, on disks or at URLs.

    The shards are listed first, which reads their headers and classes; reading a picture then needs one seek or, at a
    URL, at most one request. `txt` is the caption, `cls` the class; `json` can hold caption, class, url, license and
    attribution. Classes that are whole numbers are the numbers of classes, others are numbered in their sorted order.
    The `id` is `<shard stem>/<key>`.

    Attributes:
        order: in which order a training loader reads them; None for any order.
    """

    def __init__(
        self,
        shards: str | Iterable[str],
        size: Size,
        max_broken: int = 10,
        index: str | None = None,
        buffer: int | None = None,
        lanes: Sequence[int] = (4, 4),
        **options: Any,
    ) -> None:
        """Lists the samples of the shards.

        Args:
            shards: a tar file, a folder of them, a glob pattern, a numbered range as in `train-{000..146}.tar`, a URL
                (also with a range), or a list of these.
            size: see :class:`ImageDataset`.
            max_broken: number of unreadable pictures to tolerate.
            index: folder where the lists of the shards are kept, so that a shard is listed once. URLs need it.
            buffer: shards are read one after the other, and each picture is moved by at most this number of places, see
                :class:`ldm.data.shard_order.ShardOrder`. None is 1000 for URLs, and any order on disks.
            lanes: `[devices, workers]`, for shards that are read one after the other: their product is the number of
                shards that are read at the same time. Use multiples of the number of devices and of `num_workers`.
            options: `keep`, `class_list`, `channels` and `value_range` of :class:`ImageDataset`.

        Raises:
            FileNotFoundError: there is no such shard.
            ValueError: a shard is not an uncompressed tar file, no shard has a picture, or a URL is given without
                `index`.
        """
        super().__init__(size, max_broken, **options)
        if len(lanes) != 2 or min(lanes) < 1 or (buffer is not None and buffer < 0):
            raise ValueError(
                f"got lanes={list(lanes)}, buffer={buffer}; expected two numbers of at least 1, and buffer >= 0"
            )
        self.shards, self._parts = found_shards(shards), FileParts()
        listed = lists(self.shards, None if index is None else Path(index), self._parts)
        sizes = [len(each) for each in listed]
        self._ends, self._stems = list(accumulate(sizes)), [stem(shard) for shard in self.shards]
        if not sum(sizes):
            names = ", ".join(Path(str(shard)).name for shard in self.shards)
            raise ValueError(f"no image in {names}; expected members ending in {', '.join(SUFFIXES)}")
        samples = pa.concat_tables(listed).combine_chunks()
        self._columns = {name: samples[name].combine_chunks() for name in samples.column_names}
        self._last = -1, Sample("")
        if buffer is None and any(map(is_url, self.shards)):
            buffer = _BUFFER
        self.order = None if buffer is None else ShardOrder(sizes, buffer, *lanes)
        _say_several(samples)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return self._ends[-1]

    def id_of(self, index: int) -> str:
        """Returns the id of a picture."""
        return f"{self._stems[self._shard(index)]}/{self._sample(index).key}"

    def uri(self, index: int) -> str:
        """Returns `<shard name>#<key>`."""
        return f"{self._stems[self._shard(index)]}.tar#{self._sample(index).key}"

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the metadata in the other files of the sample.

        Raises:
            ValueError: one of these files is not UTF-8, or `json` is not a JSON object.
        """
        sample = self._sample(index)
        known = {"id": self.id_of(index), "uri": self.uri(index)}
        if text := self._member(index, sample, "json"):
            fields = parsed_json(text)
            if not isinstance(fields, dict):
                raise ValueError(f"json member holds a {type(fields).__name__}, expected an object")
            for entry, names in _JSON_KEYS.items():
                value = next((fields[name] for name in names if fields.get(name) is not None), None)
                if value is not None:
                    known[entry] = str(value)
        for entry, extension in (("caption", "txt"), ("class_id", "cls")):
            if text := self._member(index, sample, extension):
                known[entry] = text.decode("utf-8-sig").strip()
        return complete(known)

    def class_ids(self) -> Iterable[str]:
        """Returns the classes of all pictures. Those in `json` are read now, at their first use."""
        yield from pc.unique(self._columns["class_id"]).to_pylist()
        for index in range(len(self)):
            sample = self._sample(index)
            if not sample.class_id and "json" in sample.parts:
                with contextlib.suppress(ValueError):  # a broken sample, which its item reports
                    yield self.metadata(index)["class_id"]

    def numbered(self) -> Classes:
        """Returns the classes with their numbers, which are their names if all are whole numbers."""
        return numbered_classes(self.class_ids())

    def read(self, index: int) -> bytes:
        """Returns the encoded picture."""
        sample = self._sample(index)
        return self._member(index, sample, sample.pictures[0])

    def _sample(self, index: int) -> Sample:
        """Returns a sample. The last one is kept, because an item asks for it several times."""
        number = range(len(self))[index]
        last = self._last
        if last[0] != number:
            last = number, sample_of({name: column[number].as_py() for name, column in self._columns.items()})
            self._last = last
        return last[1]

    def _shard(self, index: int) -> int:
        """Returns the number of the shard of a sample."""
        return bisect_right(self._ends, range(len(self))[index])

    def _member(self, index: int, sample: Sample, extension: str) -> bytes:
        """Returns the content of a file of a sample; it is empty if the sample has no such file."""
        if extension not in sample.parts:
            return b""
        (start, length), shard = sample.parts[extension], self.shards[self._shard(index)]
        return self._parts.read(shard, start, length)


def _say_several(samples: pa.Table) -> None:
    """Logs how many samples have several pictures."""
    counts = pc.list_value_length(samples["extensions"])
    wide = samples.filter(pc.greater(counts, 1)).to_batches(1000)
    several = [sample for batch in wide for sample in map(sample_of, batch.to_pylist()) if len(sample.pictures) > 1]
    if several:
        example = f"{several[0].key} ({', '.join(several[0].pictures)})"
        LOG.warning("%d samples have several pictures, of which the first is read, such as %s", len(several), example)
