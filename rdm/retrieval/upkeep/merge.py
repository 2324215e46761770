"""Merges several databases into one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import atomic_path, read_json, write_json
from rdm.retrieval.builder.work import REPORT
from rdm.retrieval.database.removed import read_removed, write_removed
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.shards import CARD, KINDS, explained, new_folder, shard_file


def merge_databases(paths: Sequence[str | Path], output: str | Path) -> RetrievalDatabase:
    """Returns a new database with the rows of several databases, one after the other, without embedding anything.

    Files are hard-linked if the disk allows that, otherwise copied. Removed rows stay removed. If ``output`` is what
    the call would make, as after one that was killed at its end, it is returned.

    Args:
        paths: folders of databases made by one embedder.
        output: folder of the new database.

    Raises:
        FileNotFoundError: a database is not finished.
        ValueError: there are fewer than two databases, different embedders made them, or ``output`` is
            something else.
        OSError: the disk is full; nothing is left of the new database.
    """
    output = Path(output)
    if len(paths) < 2:
        raise ValueError(f"got {len(paths)} databases to merge, expected at least 2")
    opened = [RetrievalDatabase.open(path) for path in paths]
    for database in opened[1:]:
        first, other = opened[0].card["embedder"], database.card["embedder"]
        if first["fingerprint"] != other["fingerprint"]:
            raise ValueError(
                f"database {opened[0].path} was made by embedder {first['name']} with fingerprint "
                f"{first['fingerprint']}, {database.path} by {other['name']} with {other['fingerprint']}; expected one "
                "embedder for all"
            )
    shards: list[dict[str, Any]] = []
    marks: dict[str, np.ndarray] = {}
    reports: list[dict[str, Any]] = []
    files: list[tuple[Path, str, str]] = []
    for database in opened:
        lost = read_removed(database.path)
        for number, shard in enumerate(database.card["shards"]):
            name = f"{len(shards):05d}"
            files += [(database.file(kind, number), kind, name) for kind in (() if "files" in shard else KINDS)]
            shards.append({**shard, "name": name})
            marks[name] = lost.get(shard["name"], np.empty(0, np.int64))
        report = database.path / REPORT
        reports += read_json(report, "")["unreadable"] if report.is_file() else []
    sources = [entry for database in opened for entry in database.sources]
    rows = sum(len(database) for database in opened)
    card = {**opened[0].card, "rows": rows, "sources": sources, "shards": shards}
    if not _is_merged(output, card, marks):
        with explained(output, "nothing of it is left"), new_folder(output) as folder:
            for file, kind, name in files:
                _link(file, shard_file(folder, kind, name))
            write_removed(folder, marks)
            if reports:
                write_json(folder / REPORT, {"unreadable": reports})
            write_json(folder / CARD, card)
    return RetrievalDatabase.open(output)


def _is_merged(output: Path, card: Mapping[str, Any], marks: Mapping[str, np.ndarray]) -> bool:
    """Whether a folder has the card and the removed rows that a merge would write."""
    if not (output / CARD).is_file() or read_json(output / CARD, f"delete {output}") != card:
        return False
    wanted, found = {name: rows for name, rows in marks.items() if len(rows)}, read_removed(output)
    return wanted.keys() == found.keys() and all(
        np.array_equal(np.unique(wanted[name]), found[name]) for name in wanted
    )


def _link(file: Path, target: Path) -> None:
    """Makes a hard link to a file, or copies the file if the disk does not support links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(file, target)  # shards never change, so both databases can share the file
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(file, temporary)
