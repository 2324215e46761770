"""The files of one shard: its embeddings and the metadata of its rows."""

from __future__ import annotations

import contextlib
import mmap
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm.files import atomic_path, file_hash, read_array, write_array
from ldm.locks import LOCK, locked

CARD = "database.json"
KINDS = ("embeddings", "metadata")
# The metadata of every row. `item` is the number of the picture in its source, the box is in pixels of the picture, and
# `sha256` is the hash of the pixels of the patch that was embedded.
NUMBERS = ("item", "x0", "y0", "x1", "y1")
TEXTS = ("image_id", "caption", "class_id", "uri", "licence", "attribution", "sha256")
# Columns of other projects that mean the same, best first. Their columns with our names for the box, the number of the
# picture and the hash of its pixels mean something else.
_FOREIGN = {
    "image_id": ("image_path", "key", "id"),
    "caption": ("text", "TEXT"),
    "uri": ("url", "URL", "image_path"),
    "licence": ("license", "LICENSE"),
}


def check_card(card: Mapping[str, Any]) -> None:
    """Checks the types in the card of a database.

    Raises:
        ValueError: an entry has another type; the message names it.
        KeyError: an entry is missing.
    """
    shards = list(card["shards"])
    wholes = {"dim": card["dim"], "rows": card["rows"], **{f"rows of {each['name']}": each["rows"] for each in shards}}
    for number, source in enumerate(card.get("sources", ())):
        fits = isinstance(source, Mapping) and isinstance(source["source"], Mapping | None)
        if not fits or not isinstance(source["patches"], Mapping):
            raise ValueError(f"source {number} is {str(source)[:80]!r}, expected a mapping with source and patches")
        wholes[f"shards of source {number}"] = source["shards"]
    texts = {"dtype": card["dtype"], **{f"the name of shard {n}": each["name"] for n, each in enumerate(shards)}}
    if bad := [name for name, value in wholes.items() if type(value) is not int or value < 0]:
        raise ValueError(f"{bad[0]} is {wholes[bad[0]]!r}, expected a whole number")
    if bad := [name for name, value in texts.items() if not isinstance(value, str) or "/" in value]:
        raise ValueError(f"{bad[0]} is {texts[bad[0]]!r}, expected a name")
    np.dtype(card["dtype"])


def shard_file(path: Path, kind: str, name: str) -> Path:
    """Returns the path of a shard's file; ``kind`` is ``embeddings`` or ``metadata``."""
    return path / kind / (name + {"embeddings": ".npy", "metadata": ".parquet"}[kind])


def open_shard(file: Path, rows: int, dim: int, dtype: str = "float16") -> np.ndarray:
    """Returns the memory-mapped embeddings ``[rows, dim]`` of one shard.

    Raises:
        ValueError: the file is missing or truncated, or has another shape or type.
    """
    try:
        shard = read_array(file)
    except ValueError as error:
        raise ValueError(f"shard {file} is missing or damaged ({error}); rebuild the database") from error
    if shard.shape != (rows, dim) or shard.dtype != np.dtype(dtype):
        raise ValueError(f"shard {file} holds {shard.shape} {shard.dtype}, expected {(rows, dim)} {dtype}; rebuild it")
    return shard


def advise(shard: np.ndarray, advice: str) -> None:
    """Tells the system how a memory map is used, such as ``MADV_DONTNEED``, if the system supports that."""
    pages: Any = shard.base
    if hasattr(mmap, advice):
        pages.madvise(getattr(mmap, advice))


def metadata_schema(extra: Sequence[str] = ()) -> pa.Schema:
    """Returns the columns of a shard's metadata: those of every database and the source's further text columns."""
    numbers = [(column, pa.int64() if column == "item" else pa.int32()) for column in NUMBERS]
    texts = [(column, pa.string()) for column in (*TEXTS, *extra)]
    return pa.schema([*texts[:1], *numbers, *texts[1:]])


def stored_name(name: str, names: Sequence[str], foreign: bool) -> str | None:
    """Returns the name that a column of ours has in a file; None if the file lacks it.

    Args:
        name: our name of the column.
        names: the columns of the file.
        foreign: whether another project wrote the file.
    """
    if foreign and name in (*NUMBERS, "sha256"):
        return None
    return next((other for other in (name, *(_FOREIGN.get(name, ()) if foreign else ())) if other in names), None)


def to_our_columns(table: pa.Table) -> pa.Table:
    """Returns another project's metadata in our form: known columns under our names, all others as texts."""
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    taken = {stored_name(name, plain, True) for name in TEXTS}
    schema = metadata_schema([name for name in plain if name not in taken and name not in (*NUMBERS, *TEXTS)])
    columns = []
    for field in schema:
        stored = stored_name(field.name, plain, True)
        try:
            texts = None if stored is None else table[stored].cast(pa.string()).fill_null("")
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {stored}: {error}; expected texts in UTF-8") from error
        columns.append(unknown(field.name, len(table)) if texts is None else texts)
    return pa.Table.from_arrays(columns, schema=schema)


def unknown(name: str, rows: int) -> pa.Array:
    """Returns the values of a column that a shard lacks: empty texts, 0 for a box, -1 for the picture's number."""
    if name in NUMBERS:
        field = metadata_schema().field(name)
        return pa.array([-1 if name == "item" else 0] * rows, field.type)
    return pa.array([""] * rows)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a hidden folder that is renamed to ``output`` at the end and deleted after an error.

    Another process that makes the same folder meanwhile waits, and then finds that it exists.

    Raises:
        ValueError: ``output`` exists.
    """
    if not output.name:
        raise ValueError(f"got the folder {output} to write, expected one that can be made; name another path")
    unfinished = output.with_name(f".{output.name}.tmp")
    with locked(output.with_name(f".{output.name}{LOCK}"), f"writing {output}"):
        if output.exists():
            raise ValueError(f"{output} exists already; delete it or name another path")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            unfinished.replace(output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path, left: str = "its complete shards are kept") -> Iterator[None]:
    """Adds what remains of the database at ``path`` to the error of a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written to ({error.strerror or error}); {left}: free some space and run the same "
            "command again"
        ) from error


def write_shard(path: Path, name: str, vectors: np.ndarray, table: pa.Table) -> dict[str, Any]:
    """Writes one shard, each file whole or not at all.

    Args:
        path: folder of the database.
        name: name of the shard.
        vectors: ``[n, D] float16``.
        table: n rows of metadata.

    Returns:
        The shard's line of the shard table.

    Raises:
        OSError: a file cannot be written, for example on a full disk; nothing of that file is left.
    """
    files = {kind: shard_file(path, kind, name) for kind in KINDS}
    with explained(path):
        write_array(files["embeddings"], vectors)
        with atomic_path(files["metadata"]) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return {"name": name, "rows": len(vectors), **{kind: file_hash(file) for kind, file in files.items()}}
