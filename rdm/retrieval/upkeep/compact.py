"""Deletes the removed rows of a database by rewriting its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import check_hash, write_json
from ldm.locks import locked
from rdm.retrieval.database.removed import changing, read_removed, write_removed
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.shards import CARD, KINDS, explained, shard_file, write_shard
from rdm.retrieval.upkeep.append import APPEND_LOCK, APPEND_PLAN, next_number
from rdm.retrieval.upkeep.erase import erase

LOG = logging.getLogger(__name__)


def compact(path: str | Path) -> RetrievalDatabase:
    """Rewrites a database without its removed rows, and deletes or empties files that hold something of them.

    Afterwards no file in the folder has their vectors, names or pictures, see :mod:`rdm.retrieval.upkeep.erase`. Only
    shards with removed rows are rewritten. Later rows get smaller numbers, so the index and neighbour tables must
    be built again, and a program that has the database open ends with an error. Delete the removed pictures from the
    source, too; otherwise the next append adds them again.

    Args:
        path: folder of the database.

    Raises:
        FileNotFoundError: there is no finished database.
        ValueError: an append is unfinished, a file is damaged, or all rows are removed.
        OSError: the disk is full; the database is unchanged.
    """
    path = RetrievalDatabase.open(path).path
    if (path / APPEND_PLAN).is_file():
        raise ValueError(f"an append to {path} is unfinished; finish it, or delete {path / APPEND_PLAN}")
    with locked(path / APPEND_LOCK, f"changing {path}"):
        before = len(RetrievalDatabase.open(path))
        with changing(path / CARD):
            _rewrite(path)
        compacted = RetrievalDatabase.open(path)
        for file in unused_files(path, compacted.card["shards"]):
            file.unlink()
        erase(compacted)
    LOG.info("database %s has %d rows, %d were deleted", path, len(compacted), before - len(compacted))
    return compacted


def _rewrite(path: Path) -> None:
    """Writes the shards that have removed rows without them, and the card; the caller holds the locks."""
    database = RetrievalDatabase.open(path)
    if (path / APPEND_PLAN).is_file():
        raise ValueError(f"an append to {path} is unfinished; finish it, or delete {path / APPEND_PLAN}")
    if not database.living_count:
        raise ValueError(f"all rows of {path} are removed; delete the folder instead")
    marks, further = read_removed(path), next_number(database)
    shards: list[dict[str, Any]] = []
    sources = [{**entry, "shards": 0} for entry in database.sources]
    last_shards = np.cumsum([entry["shards"] for entry in database.sources])
    for number, shard in enumerate(database.card["shards"]):
        lost = marks.get(shard["name"], np.empty(0, np.int64))
        kept = np.setdiff1d(np.arange(shard["rows"]), lost)
        if not kept.size:
            continue
        if lost.size:
            for kind in KINDS:
                check_hash(database.file(kind, number), shard[kind], "restore it, or build the database again")
            vectors, table = database.shard(number, kept)
            shard = write_shard(path, f"{further:05d}", vectors, table)
            further += 1
        shards.append(shard)
        sources[int(np.searchsorted(last_shards, number, side="right"))]["shards"] += 1
    rows = sum(shard["rows"] for shard in shards)
    kept_sources = [entry for entry in sources if entry["shards"]]
    with explained(path):
        write_json(path / CARD, {**database.card, "rows": rows, "sources": kept_sources, "shards": shards})
    write_removed(path, {})


def unused_files(path: Path, shards: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Returns the files in the folders of shards that belong to no shard of a shard table."""
    used = {shard_file(path, kind, shard["name"]) for shard in shards for kind in KINDS}
    return sorted(file for kind in KINDS for file in (path / kind).glob("*") if file not in used)
