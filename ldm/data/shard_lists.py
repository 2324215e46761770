"""Lists of what tar shards hold: where each file of each sample lies. They are made once and can be kept."""

from __future__ import annotations

import json
import logging
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ldm.data.file_parts import FileParts, is_url
from ldm.data.images import SUFFIXES, expand_files
from ldm.files import atomic_path

LOG = logging.getLogger(__name__)

FORMAT = 1
_CARD = b"shard"  # the key of a list's metadata
_DIGITS = 6  # of the numbers in a range of shards
_CLASS_BYTES = 65536  # in the longest name of a class
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("extensions", pa.large_list(pa.large_string())),
        ("offsets", pa.large_list(pa.int64())),
        ("sizes", pa.large_list(pa.int64())),
        ("class_id", pa.large_string()),
    ]
)


@dataclass
class Sample:
    """A sample of a shard; `parts` holds the offset and the length in bytes of each of its files, by extension.

    `class_id` is the content of its file `cls`.
    """

    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    class_id: str = ""

    @property
    def pictures(self) -> list[str]:
        """The extensions of its pictures."""
        return [extension for extension in self.parts if f".{extension}" in SUFFIXES]


def found_shards(shards: str | Iterable[str]) -> list[Path | str]:
    """Returns the paths and URLs of shards.

    Args:
        shards: a tar file, a folder of them, a glob pattern, a numbered range as in `train-{000..146}.tar`, a URL
            without or with such a range, or a list of these.

    Raises:
        FileNotFoundError: an entry matches no file. URLs are not asked for.
        ValueError: a range has too many digits.
    """
    entries = [shards] if isinstance(shards, str) else shards
    found: list[Path | str] = []
    for name in (name for entry in entries for name in _expanded(entry)):
        found += [name] if is_url(name) else expand_files(name, ".tar")
    return found


def stem(shard: Path | str) -> str:
    """Returns the name of a shard without its folder and its ending."""
    return Path(str(shard).partition("?")[0]).stem


def lists(shards: Iterable[Path | str], index: Path | None, parts: FileParts) -> list[pa.Table]:
    """Returns the list of each shard: a table with a line for each sample that has a picture, in their order.

    Args:
        shards: paths and URLs.
        index: folder where lists are kept. If it lacks one, the shard is read once and its list is written.
        parts: reads URLs.

    Raises:
        ValueError: a shard is not an uncompressed tar file, or differs from its list; or a URL is given without a
            folder for lists.
        ldm.data.file_parts.UnreachableError: a URL cannot be read.
    """
    shards = list(shards)
    if index is None:
        if urls := [shard for shard in shards if is_url(shard)]:
            raise ValueError(
                f"shards: got {urls[0]} without index; set index to a folder where the list of each shard is kept, "
                "so that it is read only once"
            )
        return [_as_table(_samples(shard, parts)) for shard in shards]
    missing = [shard for shard in shards if not _list_file(index, shard).is_file()]
    if missing:
        LOG.info(
            "listing %d of %d shards once into %s; each is read from its start to its end",
            len(missing),
            len(shards),
            index,
        )
    for shard in tqdm(missing, unit="shard", desc="listing shards", disable=not missing):
        card = {"format": FORMAT, "shard": str(shard), "bytes": _bytes(shard, parts)}
        table = _as_table(_samples(shard, parts)).replace_schema_metadata({_CARD: json.dumps(card)})
        index.mkdir(parents=True, exist_ok=True)
        with atomic_path(_list_file(index, shard)) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return [_read(index, shard) for shard in shards]


def _read(index: Path, shard: Path | str) -> pa.Table:
    """Returns a list that is kept, after a check that it is of this shard."""
    file = _list_file(index, shard)
    try:
        table = pq.read_table(file)
        card = json.loads((table.schema.metadata or {}).get(_CARD, b"{}"))
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise ValueError(f"{file} is no list of a shard ({str(error).splitlines()[0]}); delete it") from error
    size = card.get("bytes") if is_url(shard) else _bytes(shard, FileParts())
    if (card.get("format"), card.get("shard"), card.get("bytes")) != (FORMAT, str(shard), size):
        raise ValueError(
            f"{file} is the list of {card.get('shard')} of {card.get('bytes')} bytes, expected {shard} of {size}; "
            "delete it, or name another folder in index"
        )
    return table.cast(_SCHEMA)


def _list_file(index: Path, shard: Path | str) -> Path:
    return index / f"{stem(shard)}.parquet"


def _bytes(shard: Path | str, parts: FileParts) -> int:
    return parts.size(str(shard)) if is_url(shard) else Path(shard).stat().st_size


def sample_of(line: dict[str, Any]) -> Sample:
    """Returns the sample in a line of a list."""
    spans = zip(line["offsets"], line["sizes"], strict=True)
    return Sample(line["key"], dict(zip(line["extensions"], spans, strict=True)), line["class_id"])


def _as_table(samples: Iterable[Sample]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for sample in samples:
        columns["key"].append(sample.key)
        columns["extensions"].append(list(sample.parts))
        columns["offsets"].append([start for start, _ in sample.parts.values()])
        columns["sizes"].append([length for _, length in sample.parts.values()])
        columns["class_id"].append(sample.class_id)
    return pa.table(columns, schema=_SCHEMA)


def _expanded(entry: str) -> list[str]:
    """Returns the three names for `a{08..10}.tar`; a name without a range is returned unchanged."""
    match = _RANGE.search(entry)
    if match is None:
        return [entry]
    first, last = match.groups()
    if max(len(first), len(last)) > _DIGITS:
        raise ValueError(f"shards: got the range '{entry}', expected numbers of at most {_DIGITS} digits; correct it")
    numbers = range(int(first), int(last) + 1)
    return [f"{entry[: match.start()]}{number:0{len(first)}d}{entry[match.end() :]}" for number in numbers]


def _is_text(name: str) -> bool:
    """Whether a name from a file has only characters that UTF-8 can encode; others stand for single bytes."""
    return not any("\ud800" <= each <= "\udfff" for each in name)


def _samples(shard: Path | str, parts: FileParts) -> Iterator[Sample]:
    """Yields the samples of a shard that have a picture, in order; the files of a sample must be adjacent."""
    current = Sample("")
    try:
        source = {"fileobj": parts.stream(str(shard))} if is_url(shard) else {"name": shard}
        with tarfile.open(mode="r:", **source) as archive:
            for member in archive:
                if not member.isreg():
                    continue
                if not _is_text(member.name):
                    raise ValueError(
                        f"{shard}: the name {member.name!r} is no UTF-8; write the shard with names in UTF-8"
                    )
                folder, _, name = member.name.rpartition("/")
                first, _, extension = name.partition(".")
                key = f"{folder}/{first}" if folder else first
                if key != current.key:
                    if current.pictures:
                        yield current
                    current = Sample(key)
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
    if current.pictures:
        yield current
