"""Databases that change: append pictures, find rows to remove, rewrite without them, merge.

``RetrievalDatabase.remove`` marks rows; they keep their numbers, so indexes and neighbour tables stay valid and leave
them out. Append, compact and merge make other rows: indexes and tables of before are refused and built again. All of
them can be killed at any moment: the card changes last, and at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ldm.files import check_hash, read_json, write_json
from ldm.util import atomic_path, instantiate_from_config
from rdm.retrieval.builder import REPORT, Work, embed_all, finish, new_plan, resume
from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.embedder import Embedder, image_id
from rdm.retrieval.patches import Patches
from rdm.retrieval.shards import CARD, KINDS, explained, new_folder, shard_file, write_shard
from rdm.retrieval.tombstones import changing, read_removed, write_removed

LOG = logging.getLogger(__name__)
APPEND_PLAN = "append.json"


def append_pictures(
    path: str | Path,
    source: Mapping[str, Any],
    embedder: Embedder,
    *,
    patches: Mapping[str, Any] | None = None,
    **options: Any,
) -> RetrievalDatabase:
    """Embeds the pictures of a source that a database does not have yet; continues an append that was killed.

    A picture is there already if a row of the same source and policy has its id. Rows that are there keep their numbers
    and are not embedded again.

    Args:
        path: folder of the database.
        source: ``{"target", "params"}`` of a data set of ``ldm.data``: one that has grown since, or another one.
        embedder: the one that made the database.
        patches: what to take of each picture, see :mod:`rdm.retrieval.patches`.
        options: see :class:`rdm.retrieval.builder.Work`.

    Raises:
        FileNotFoundError: there is no finished database.
        ValueError: another embedder made it, or see :func:`rdm.retrieval.builder.build_database`.
        OSError: the disk is full; the database is as before, and the same command continues.
    """
    path, work = Path(path), Work(**options)
    work.check()
    database, policy = RetrievalDatabase.open(path, embedder), Patches(patches)
    source = json.loads(json.dumps(source))
    images = instantiate_from_config(source)
    items, ids = _new_items(database, {"source": source, "patches": policy.config}, images)
    if (path / APPEND_PLAN).is_file():
        base = read_json(path / APPEND_PLAN, f"delete {path / APPEND_PLAN}").get("base")
        if not items or base != database.fingerprint:  # of an append that is done, or of rows that are gone
            (path / APPEND_PLAN).unlink()
    if not items:
        LOG.info("nothing to append: database %s has every picture of the source", path)
        return database
    more = {"items": len(items), "ids": ids, "first": _next_number(database), "base": database.fingerprint}
    plan = new_plan(source, images, policy, embedder, work, **more)
    plan = resume(path, plan, embedder, APPEND_PLAN)
    embed_all(path, plan, images, items, policy, embedder, work, APPEND_PLAN)
    if plan["shards"]:
        with changing(path / CARD):
            if RetrievalDatabase.open(path).fingerprint != plan["base"]:
                raise ValueError(f"database {path} was changed meanwhile; run the same command again")
            finish(path, plan, database.card)
    else:
        LOG.info("nothing to append: %d new pictures are unreadable, too small or without a box", len(items))
    (path / APPEND_PLAN).unlink()
    return RetrievalDatabase.open(path, embedder)


def _new_items(database: RetrievalDatabase, entry: Mapping[str, Any], images: Any) -> tuple[list[int], str]:
    """Returns the numbers of the pictures that no row of this source has, and the hash of their ids."""
    owners, known = database.sources_of(np.arange(len(database))), []
    ours = [n for n, found in enumerate(database.sources) if all(found[key] == entry[key] for key in entry)]
    if ours:
        known = database.column("image_id").filter(pa.array(np.isin(owners, ours)))
    ids = pa.array([image_id(images, number) for number in range(len(images))])
    new = np.flatnonzero(~pc.is_in(ids, value_set=pa.array(known, pa.string())).to_numpy(zero_copy_only=False))
    digest = hashlib.sha256("\n".join(ids.take(pa.array(new)).to_pylist()).encode()).hexdigest()
    return new.tolist(), digest


def _next_number(database: RetrievalDatabase) -> int:
    """Returns a number that no shard has, nor one that is gone but still has rows marked as removed."""
    names = {shard["name"] for shard in database.card["shards"]} | read_removed(database.path).keys()
    return 1 + max(map(int, names))


def find_rows(
    database: RetrievalDatabase,
    *,
    ids: Sequence[str] = (),
    sources: Sequence[str] = (),
    licences: Sequence[str] = (),
    where: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
    """Returns the rows that meet any of these, in order, ``[R] int64``; those that are removed already are among them.

    Args:
        database: the database.
        ids: image ids.
        sources: what the row's ``uri`` begins with: a folder, a file of the source, a web site.
        licences: licences, word for word.
        where: values of any columns, word for word.

    Raises:
        ValueError: there is no such column.
    """
    rules = [("image_id", list(ids), False), ("licence", list(licences), False), ("uri", list(sources), True)]
    rules += [(column, list(values), False) for column, values in (where or {}).items()]
    found, start = [], 0
    for column in where or {}:
        if all(database.stored_as(number, column) is None for number in range(len(database.card["shards"]))):
            database.column(column)  # says which columns there are
    for number, shard in enumerate(database.card["shards"]):
        hit = np.zeros(shard["rows"], dtype=bool)
        for column, values, beginning in rules:
            if values and (beginning or _may_hold(database, number, column, values)):
                hit |= _matches(database.cells(number, column), values, beginning)
        found.append(start + np.flatnonzero(hit))
        start += shard["rows"]
    return np.concatenate(found)


def select_rows(database: RetrievalDatabase, rules: Sequence[str]) -> np.ndarray:
    """Returns the rows that meet ``COLUMN=VALUE`` rules, in order, ``[R] int64``: in every column, one of its values.

    Raises:
        ValueError: a rule of another form, no such column, or no row.
    """
    values: dict[str, list[str]] = {}
    for rule in rules:
        column, equals, value = rule.partition("=")
        if not equals:
            raise ValueError(f"got the rule '{rule}', expected COLUMN=VALUE")
        values.setdefault(column, []).append(value)
    found = [find_rows(database, where={column: wanted}) for column, wanted in values.items()]
    rows = functools.reduce(np.intersect1d, found)
    if not len(rows):
        raise ValueError(f"no row of {database.path} has {' and '.join(rules)}; see its metadata for what there is")
    return rows


def _may_hold(database: RetrievalDatabase, number: int, column: str, values: Iterable[str]) -> bool:
    """Returns whether a shard may hold one of some values, by the least and largest that its file states."""
    stored = database.stored_as(number, column)
    if stored is None or "" in values:  # which is what a cell without a value holds
        return "" in values
    metadata = pq.read_metadata(database.file("metadata", number))
    place = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)].index(stored)
    for group in range(metadata.num_row_groups):
        stated = metadata.row_group(group).column(place).statistics
        if stated is None or not stated.has_min_max or not isinstance(stated.min, str):
            return True
        if any(stated.min <= value <= stated.max for value in values):
            return True
    return False


def _matches(cells: pa.ChunkedArray, values: Sequence[str], beginning: bool) -> np.ndarray:
    texts = cells.cast(pa.string()).fill_null("")
    if not beginning:
        return pc.is_in(texts, value_set=pa.array(values)).to_numpy()
    return np.logical_or.reduce([pc.starts_with(texts, value).to_numpy() for value in values])


def compact(path: str | Path) -> RetrievalDatabase:
    """Rewrites a database without its removed rows, and deletes what belongs to no row.

    Only shards that lost rows are rewritten. The rows behind get smaller numbers: the index and neighbour tables have
    to be made again, and a program that has the database open ends with an error. Take removed pictures out of the
    source too, or the next append brings them back.

    Args:
        path: folder of the database.

    Raises:
        FileNotFoundError: there is no finished database.
        ValueError: an append is unfinished, a file is damaged, or no row would be left.
        OSError: the disk is full; the database is as before.
    """
    path = RetrievalDatabase.open(path).path
    with changing(path / CARD):
        database = RetrievalDatabase.open(path)
        if (path / APPEND_PLAN).is_file():
            raise ValueError(f"an append to {path} is unfinished; finish it, or delete {path / APPEND_PLAN}")
        if database.alive is not None and not database.alive.any():
            raise ValueError(f"every row of {path} is removed, nothing would be left; delete the folder instead")
        marks, next_number = read_removed(path), _next_number(database)
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
                shard = write_shard(path, f"{next_number:05d}", vectors, table)
                next_number += 1
            shards.append(shard)
            sources[int(np.searchsorted(last_shards, number, side="right"))]["shards"] += 1
        rows = sum(shard["rows"] for shard in shards)
        kept_sources = [entry for entry in sources if entry["shards"]]
        with explained(path):
            write_json(path / CARD, {**database.card, "rows": rows, "sources": kept_sources, "shards": shards})
        write_removed(path, {})
    for file in unused_files(path, shards):
        file.unlink()
    LOG.info("database %s: %d rows left, %d rewritten away", path, rows, len(database) - rows)
    return RetrievalDatabase.open(path)


def unused_files(path: Path, shards: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Returns the files in the folders of shards that belong to none of a shard table."""
    used = {shard_file(path, kind, shard["name"]) for shard in shards for kind in KINDS}
    return sorted(file for kind in KINDS for file in (path / kind).glob("*") if file not in used)


def merge_databases(paths: Sequence[str | Path], output: str | Path) -> RetrievalDatabase:
    """Returns a new database with the rows of several, one behind the other; nothing is embedded again.

    Files are linked where the disk allows it, else copied. Removed rows stay removed.

    Args:
        paths: folders of databases that one embedder made.
        output: folder of the new one.

    Raises:
        FileNotFoundError: one of them is not finished.
        ValueError: fewer than two, another embedder made one, or there is something at ``output``.
        OSError: the disk is full; nothing is left of the new one.
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
    with explained(output, "nothing of it is left"), new_folder(output) as folder:
        for database in opened:
            lost = read_removed(database.path)
            for number, shard in enumerate(database.card["shards"]):
                name = f"{len(shards):05d}"
                for kind in () if "files" in shard else KINDS:
                    _link(database.file(kind, number), shard_file(folder, kind, name))
                shards.append({**shard, "name": name})
                marks[name] = lost.get(shard["name"], np.empty(0, np.int64))
            report = database.path / REPORT
            reports += read_json(report, "")["unreadable"] if report.is_file() else []
        write_removed(folder, marks)
        if reports:
            write_json(folder / REPORT, {"unreadable": reports})
        sources = [entry for database in opened for entry in database.sources]
        rows = sum(len(database) for database in opened)
        write_json(folder / CARD, {**opened[0].card, "rows": rows, "sources": sources, "shards": shards})
    return RetrievalDatabase.open(output)


def _link(file: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the disk has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(file, target)  # shards are never written to again, so both may have the same bytes
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(file, temporary)
