"""The rows that are marked as removed from a database until ``compact`` deletes them.

``removed.npz`` lies next to the card. For each shard with removed rows it holds an array of their numbers, under the
name of the shard. The name of a shard stands for the same rows as long as it is in the shard table, and marks under
other names are ignored. The card can therefore be replaced at any moment without a mark applying to the wrong row.
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
    """Returns the removed rows ``[R] int64`` of each shard of the database at ``path``, numbered within the shard.

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
            f"{file} is damaged ({error}), so it is unknown which rows are removed; restore it, or delete it and "
            "remove the rows again"
        ) from error


def write_removed(path: Path, removed: Mapping[str, np.ndarray]) -> None:
    """Writes the removed rows of each shard, whole or not at all; deletes the file if no row is removed."""
    kept = {name: np.unique(rows).astype(np.int32) for name, rows in sorted(removed.items()) if len(rows)}
    if not kept:
        (path / FILE).unlink(missing_ok=True)
        return
    with atomic_path(path / FILE) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **kept)


@contextlib.contextmanager
def changing(card: Path) -> Iterator[None]:
    """Locks the database of a card against changes by other processes; they can still read it.

    Raises:
        FileNotFoundError: there is no card.
    """
    while True:
        with card.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it when the process ends, in whatever way
            if os.fstat(file.fileno()).st_ino == card.stat().st_ino:  # otherwise another process has replaced it
                yield
                return


def stamp(path: Path) -> tuple[int, ...]:
    """Returns numbers that change whenever rows are removed or the database is rewritten; this takes microseconds."""
    states: list[int] = []
    for name in (CARD, FILE):
        with contextlib.suppress(FileNotFoundError):
            state = (path / name).stat()
            states += [state.st_ino, state.st_mtime_ns, state.st_size]
    return tuple(states)


def alive_rows(path: Path, shards: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, int]:
    """Returns which rows of the shard table are not removed, ``[N] bool`` and read-only, and how many are removed.

    Raises:
        ValueError: the file is damaged or names a row that its shard does not have, or the database was rewritten, so
            that it is unknown which rows of this shard table are removed.
    """
    removed = read_removed(path)
    current = {shard["name"] for shard in read_json(path / CARD, "restore it")["shards"]}
    if not all(shard["name"] in current for shard in shards):
        raise ValueError(f"database {path} was rewritten since it was opened; open it again")
    total, start = sum(shard["rows"] for shard in shards), 0
    if not any(shard["name"] in removed for shard in shards):
        return np.broadcast_to(True, (total,)), 0  # uses no memory
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
