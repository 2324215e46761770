"""The files of one shard: embeddings and what is known of each row."""

from __future__ import annotations

import contextlib
import mmap
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm.files import atomic_path, file_hash

CARD = "database.json"
KINDS = ("embeddings", "metadata")
# What every row says about its picture. `item` is the number of the picture in its source, the box is in pixels of the
# picture, sha256 is over the pixels of the patch that was embedded.
NUMBERS = ("item", "x0", "y0", "x1", "y1")
TEXTS = ("image_id", "caption", "class_id", "uri", "licence", "attribution", "sha256")
# Other projects' columns that hold the same, best first. Theirs of our names for the box, the picture's number and the
# hash of its pixels mean something else.
_FOREIGN = {
    "image_id": ("image_path", "key", "id"),
    "caption": ("text", "TEXT"),
    "uri": ("url", "URL", "image_path"),
    "licence": ("license", "LICENSE"),
}


def shard_file(path: Path, kind: str, name: str) -> Path:
    """Returns the file of one shard; ``kind`` is ``embeddings`` or ``metadata``."""
    return path / kind / (name + {"embeddings": ".npy", "metadata": ".parquet"}[kind])


def open_shard(file: Path, rows: int, dim: int, dtype: str = "float16") -> np.ndarray:
    """Returns the memory-mapped embeddings ``[rows, dim]`` of one shard.

    Raises:
        ValueError: the file is missing, truncated or of another shape or type.
    """
    try:
        shard = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"shard {file} is missing or damaged ({error}); rebuild the database") from error
    if shard.shape != (rows, dim) or shard.dtype != np.dtype(dtype):
        raise ValueError(f"shard {file} holds {shard.shape} {shard.dtype}, expected {(rows, dim)} {dtype}; rebuild it")
    return shard


def advise(shard: np.ndarray, advice: str) -> None:
    """Tells the system how a map is used, such as ``MADV_DONTNEED``, where it can be told."""
    pages: Any = shard.base
    if hasattr(mmap, advice):
        pages.madvise(getattr(mmap, advice))


def metadata_schema(extra: Sequence[str] = ()) -> pa.Schema:
    """Returns the columns of a shard's metadata: those of every row, and text columns that the source adds."""
    numbers = [(column, pa.int64() if column == "item" else pa.int32()) for column in NUMBERS]
    texts = [(column, pa.string()) for column in (*TEXTS, *extra)]
    return pa.schema([*texts[:1], *numbers, *texts[1:]])


def stored_name(name: str, names: Sequence[str], foreign: bool) -> str | None:
    """Returns under which of a file's columns a column of ours is stored; None where it is not.

    Args:
        name: of the column.
        names: the file's.
        foreign: another project wrote the file.
    """
    if foreign and name in (*NUMBERS, "sha256"):
        return None
    return next((other for other in (name, *(_FOREIGN.get(name, ()) if foreign else ())) if other in names), None)


def to_our_columns(table: pa.Table) -> pa.Table:
    """Returns the metadata that another project wrote as ours: its columns under our names, further ones as texts."""
    taken = {stored_name(name, table.column_names, True) for name in TEXTS}
    plain = (field.name for field in table.schema if not pa.types.is_nested(field.type))
    schema = metadata_schema([name for name in plain if name not in taken and name not in (*NUMBERS, *TEXTS)])
    columns = []
    for field in schema:
        stored = stored_name(field.name, table.column_names, True)
        columns.append(
            unknown(field.name, len(table)) if stored is None else table[stored].cast(pa.string()).fill_null("")
        )
    return pa.Table.from_arrays(columns, schema=schema)


def unknown(name: str, rows: int) -> pa.Array:
    """Returns a metadata column that a shard does not have: empty texts, an empty box, no picture's number."""
    if name in NUMBERS:
        field = metadata_schema().field(name)
        return pa.array([-1 if name == "item" else 0] * rows, field.type)
    return pa.array([""] * rows)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a hidden folder that becomes ``output`` at the end; after an error nothing of it is left.

    Raises:
        ValueError: there is something at ``output``.
    """
    if output.exists():
        raise ValueError(f"there is something at {output} already; delete it or name another path")
    unfinished = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path, left: str = "its complete shards are kept") -> Iterator[None]:
    """Says of a file that cannot be written, as on a full disk, what is left of the database at ``path``."""
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
        name: of the shard.
        vectors: ``[n, D] float16``.
        table: n rows of metadata.

    Returns:
        Its line of the shard table.

    Raises:
        OSError: a file cannot be written, such as on a full disk; nothing of it is left.
    """
    files = {kind: shard_file(path, kind, name) for kind in KINDS}
    with explained(path):
        with atomic_path(files["embeddings"]) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(vectors))
            stream.write(np.ascontiguousarray(vectors).data)  # unlike numpy's own, this says why it fails
        with atomic_path(files["metadata"]) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return {"name": name, "rows": len(vectors), **{kind: file_hash(file) for kind, file in files.items()}}
