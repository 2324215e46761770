"""Rows that were removed from a database: marked at once, rewritten away later by ``compact``.

``removed.npz`` lies beside the card and holds an array of row numbers for each shard that lost rows, under the shard's
name. A name stands for the same rows as long as it is in the shard table; marks of other shards mean nothing. So the
card can be replaced at any moment without a mark ever meeting the wrong row.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import atomic_path, read_json
from rdm.retrieval.database.shards import CARD

FILE = "removed.npz"


def read_removed(path: Path) -> dict[str, np.ndarray]:
    """Returns the removed rows ``[R] int64`` of each shard of the database at ``path``, counted within the shard.

    Raises:
        ValueError: the file is damaged.
    """
    file = path / FILE
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name].astype(np.int64) for name in content.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} is damaged ({error}), and which rows are removed is unknown; restore it, or delete it and "
            "remove them again"
        ) from error


def write_removed(path: Path, removed: Mapping[str, np.ndarray]) -> None:
    """Writes the removed rows of each shard, whole or not at all; the file goes where none is left."""
    kept = {name: np.unique(rows).astype(np.int32) for name, rows in sorted(removed.items()) if len(rows)}
    if not kept:
        (path / FILE).unlink(missing_ok=True)
        return
    with atomic_path(path / FILE) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **kept)


@contextlib.contextmanager
def changing(card: Path) -> Iterator[None]:
    """Keeps other processes from changing the database of a card meanwhile; readers are not held up.

    Raises:
        FileNotFoundError: the card is not there.
    """
    while True:
        with card.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that ends
            if os.fstat(file.fileno()).st_ino == card.stat().st_ino:  # else another process has replaced it meanwhile
                yield
                return


def stamp(path: Path) -> tuple[int, ...]:
    """Returns what changes whenever rows are removed or the database is rewritten; takes microseconds."""
    states: list[int] = []
    for name in (CARD, FILE):
        with contextlib.suppress(FileNotFoundError):
            state = (path / name).stat()
            states += [state.st_ino, state.st_mtime_ns, state.st_size]
    return tuple(states)


def alive_rows(path: Path, shards: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, int]:
    """Returns which rows of the shard table are not removed, ``[N] bool`` and read-only, and how many are removed.

    Raises:
        ValueError: the file is damaged, or names a row that its shard does not have; or the database was rewritten, so
            that which rows of this shard table were removed is not known any more.
    """
    removed = read_removed(path)
    current = {shard["name"] for shard in read_json(path / CARD, "restore it")["shards"]}
    if not all(shard["name"] in current for shard in shards):
        raise ValueError(f"database {path} was rewritten since it was opened; open it again")
    total, start = sum(shard["rows"] for shard in shards), 0
    if not any(shard["name"] in removed for shard in shards):
        return np.broadcast_to(True, (total,)), 0  # which takes no memory
    alive = np.ones(total, dtype=bool)
    for shard in shards:
        rows = removed.get(shard["name"], np.empty(0, np.int64))
        if rows.size and (rows.min() < 0 or rows.max() >= shard["rows"]):
            raise ValueError(
                f"{path / FILE} names row {rows.max()} of shard {shard['name']}, which has {shard['rows']}; "
                "restore it, or delete it and remove the rows again"
            )
        alive[start + rows] = False
        start += shard["rows"]
    alive.flags.writeable = False
    return alive, total - int(np.count_nonzero(alive))
