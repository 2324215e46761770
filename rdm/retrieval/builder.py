"""Builds a retrieval database: read -> embed -> write, a shard at a time.

A shard covers a fixed range of the source. Each is written under a temporary name, flushed and renamed, and
then noted in ``build.json``; a build that was killed continues after the last noted shard and ends in the
same bytes. The card ``database.json`` comes last, so a folder with a card is complete. Pictures are read ahead by
other processes and shards written behind by a thread, so that the embedder need not wait. On several machines, each
does all this for shards of its own (:mod:`rdm.retrieval.distributed`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ldm.files import file_hash, read_json, write_json
from ldm.util import instantiate_from_config
from rdm.retrieval.database import CARD, FORMAT, RetrievalDatabase
from rdm.retrieval.embedder import Embedder, check_embedder, embed_ahead, to_half
from rdm.retrieval.forecast import forecast
from rdm.retrieval.patches import Patches
from rdm.retrieval.reading import Chunk, batches, chunks_of, read_chunks
from rdm.retrieval.shards import KINDS, TEXTS, explained, metadata_schema, shard_file, write_shard

LOG = logging.getLogger(__name__)
PLAN = "build.json"
REPORT = "unreadable.json"  # pictures that have no row because they cannot be read
SHARD_ROWS = 65536


@dataclass(frozen=True)
class Work:
    """How a build is carried out; none of it changes a byte of the database but ``shard_rows`` and ``batch_size``.

    Attributes:
        batch_size: patches embedded at once.
        shard_rows: pictures of the source per shard; a build that is continued keeps its own.
        workers: processes that read pictures ahead; None for one per core, at most 8.
        max_broken: unreadable pictures to tolerate; None for what the source tolerates.
        progress: show a bar.
        ray: address of a Ray cluster whose machines embed, see :mod:`rdm.retrieval.distributed`; None for this process.
    """

    batch_size: int = 256
    shard_rows: int = SHARD_ROWS
    workers: int | None = None
    max_broken: int | None = None
    progress: bool = True
    ray: str | None = None

    def check(self) -> None:
        """Raises ValueError where a number is out of range."""
        if self.batch_size < 1 or self.shard_rows < 1:
            raise ValueError(
                f"got batch_size={self.batch_size}, shard_rows={self.shard_rows}, expected both at least 1"
            )
        if min(self.workers or 0, self.max_broken or 0) < 0:
            raise ValueError(
                f"got workers={self.workers}, max_broken={self.max_broken}, expected neither to be negative"
            )

    def readers(self, chunks: int, cores: int) -> int:
        """Returns how many processes read so many chunks ahead on a machine."""
        return min(8, cores, chunks // 8) if self.workers is None else self.workers


def prepare_database(
    path: str | Path,
    source: Mapping[str, Any],
    embedder: Embedder,
    *,
    patches: Mapping[str, Any] | None = None,
    **options: Any,
) -> RetrievalDatabase:
    """Returns the database at ``path``, building or completing it first where it is not finished.

    Args:
        path: the folder.
        source: ``{"target", "params"}`` of the pictures, see :func:`build_database`.
        embedder: makes the vectors; a database that another one made is refused.
        patches: what to take of each picture, see :mod:`rdm.retrieval.patches`.
        options: further arguments of :func:`build_database`.

    Raises:
        ValueError: the database there was made by another embedder or from another source, or is damaged.
    """
    path = Path(path)
    if (path / CARD).is_file():
        database = RetrievalDatabase.open(path, embedder)
        check_source(database, source, patches)
        (path / PLAN).unlink(missing_ok=True)  # a kill between writing the card and this leaves it behind
        return database
    return build_database(path, source, embedder, patches=patches, **options)


def check_source(
    database: RetrievalDatabase, source: Mapping[str, Any], patches: Mapping[str, Any] | None = None
) -> None:
    """Checks that a database, or a part of it, was built from these pictures.

    Raises:
        ValueError: it was not; names what it was built from.
    """
    asked = {"source": _plain(source), "patches": Patches(patches).config}
    made_from = [{key: entry[key] for key in asked} for entry in database.sources]
    if asked not in made_from:
        raise ValueError(
            f"database {database.path} was built from {json.dumps(made_from[0])}, got {json.dumps(asked)}; "
            f"delete {database.path} or name another path, and build again"
        )


def build_database(
    path: str | Path,
    source: Mapping[str, Any],
    embedder: Embedder,
    *,
    patches: Mapping[str, Any] | None = None,
    **options: Any,
) -> RetrievalDatabase:
    """Embeds patches of every picture of a source and writes the database; continues a build that was killed.

    Args:
        path: folder to write; it is made, and holds nothing but this database.
        source: ``{"target", "params"}`` of a data set of ``ldm.data``. It is stored, so that the pictures of
            rows can be shown again; relative paths in it start from the folder the programs run in.
        embedder: makes the vectors.
        patches: what to take of each picture, see :mod:`rdm.retrieval.patches`; None takes it whole.
        options: see :class:`Work`.

    Returns:
        The finished database. Pictures that cannot be read have no row and are listed in ``unreadable.json``.

    Raises:
        ValueError: a database is there already, a partial build of something else is there, no picture or too few
            are readable, or a vector is not finite in float16.
        OSError: the disk is full; complete shards stay, and the same command continues.
    """
    path, work = Path(path), Work(**options)
    work.check()
    if (path / CARD).is_file():
        raise ValueError(f"there is a finished database at {path} already; delete it or name another path")
    images, policy = instantiate_from_config(_plain(source)), Patches(patches)
    plan = resume(path, new_plan(_plain(source), images, policy, embedder, work), embedder, PLAN)
    embed_all(path, plan, images, range(len(images)), policy, embedder, work, PLAN)
    card = {key: plan[key] for key in ("format", "embedder", "dim")}
    finish(path, plan, {**card, "dtype": "float16", "sources": [], "shards": []})
    (path / PLAN).unlink()
    return RetrievalDatabase.open(path, embedder)


def new_plan(
    source: Mapping[str, Any], images: Any, patches: Patches, embedder: Embedder, work: Work, **more: Any
) -> dict[str, Any]:
    """Returns what a build does and how far it is; a build is continued only by a plan like its own."""
    known = {"id", *TEXTS}
    return {
        "format": FORMAT,
        "embedder": {"name": embedder.name, "fingerprint": embedder.fingerprint},
        "dim": embedder.dim,
        "source": source,
        "items": len(images),
        "shard_rows": work.shard_rows,
        "patches": patches.config,
        "columns": sorted(_first_metadata(images).keys() - known),
        "first": 0,
        **more,
        "next": 0,
        "shards": [],
        "without": 0,
        "unreadable": [],
    }


def resume(path: Path, plan: dict[str, Any], embedder: Embedder, file: str) -> dict[str, Any]:
    """Returns the plan to follow: the one at ``path``, cut back to its undamaged shards, or else ``plan``.

    Raises:
        ValueError: what is there is something else.
    """
    if not (path / file).is_file():
        if file == PLAN and path.is_dir() and any(not found.match(f".{PLAN}.*.tmp") for found in path.iterdir()):
            raise ValueError(f"{path} is not empty and holds no database; name another path or empty it")
        write_json(path / file, plan)
        return plan
    found = read_json(path / file, f"delete {path / file}")
    remedy = f"finish it with that one, or delete {path if file == PLAN else path / file}"
    check_embedder(found["embedder"], embedder, f"the unfinished build at {path}", remedy)
    for key in plan.keys() - {"next", "shards", "without", "unreadable", "embedder", "shard_rows"}:
        if found.get(key) != plan[key]:
            raise ValueError(
                f"the unfinished build at {path} has {key} {found.get(key)!r}, got {plan[key]!r}; {remedy}"
            )
    for leftover in path.rglob(".*.tmp"):
        leftover.unlink()
    for place, shard in enumerate(found["shards"]):
        if any(file_hash(shard_file(path, kind, shard["name"])) != shard[kind] for kind in KINDS):
            LOG.warning("shard %s of the unfinished build is damaged; building again from there", shard["name"])
            found["shards"] = found["shards"][:place]
            found["next"] = (int(shard["name"]) - found["first"]) * found["shard_rows"]
            break
    LOG.info("continuing the build at %s after %d of %d images", path, found["next"], found["items"])
    return found


def embed_all(
    path: Path,
    plan: dict[str, Any],
    images: Any,
    items: Sequence[int],
    patches: Patches,
    embedder: Embedder,
    work: Work,
    file: str,
) -> None:
    """Writes the shards that a plan lacks, and keeps the plan in ``file`` up to date.

    Args:
        path: folder of the database.
        plan: what :func:`resume` returned; it is brought up to date.
        images: the data set.
        items: numbers of the pictures to embed.
        patches: what to take of each.
        embedder: makes the vectors.
        work: how.
        file: name of the plan's file.

    Raises:
        ValueError: see :func:`build_database`.
        OSError: a shard cannot be written.
    """
    starts = range(plan["next"], len(items), plan["shard_rows"])
    ranges = [(start, min(start + plan["shard_rows"], len(items))) for start in starts]
    by_shard = [chunks_of(items[start:stop]) for start, stop in ranges]
    chunks = [chunk for of_shard in by_shard for chunk in of_shard]
    workers = work.readers(len(chunks), os.cpu_count() or 1)
    LOG.info("%s", forecast(path, images, items, patches, embedder, work.batch_size, workers, plan["shard_rows"]))
    limit = images.max_broken if work.max_broken is None else work.max_broken
    bar = tqdm(total=len(items), initial=plan["next"], unit="img", desc="database", disable=not work.progress)
    if work.ray is not None:
        from rdm.retrieval.distributed import shards_on_ray  # which builds on this file

        with bar, closing(shards_on_ray(path, plan, images, items, ranges, embedder, work, file)) as shards:
            for (start, stop), done in zip(ranges, shards, strict=True):
                check_unreadable(path, _all_unreadable(plan, done["unreadable"]), limit)
                note(path, plan, stop, file, **done)
                bar.update(stop - start)
        return
    stream = read_chunks(images, patches, chunks, workers)
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer, bar:
        for (start, stop), of_shard in zip(ranges, by_shard, strict=True):
            content = embed_shard(_counted(islice(stream, len(of_shard)), bar), embedder, work.batch_size, plan)
            if written is not None:
                written.result()  # at most one shard waits while the next one fills
            check_unreadable(path, _all_unreadable(plan, content.unreadable), limit)
            written = writer.submit(_write, path, plan, start, stop, content, file)
        if written is not None:
            written.result()


@dataclass(frozen=True)
class ShardContent:
    """What a shard will hold: vectors ``[n, D] float16``, n rows of metadata, and the pictures that gave none."""

    vectors: np.ndarray
    table: pa.Table
    unreadable: list[dict[str, Any]]
    without: int


def embed_shard(chunks: Iterable[Chunk], embedder: Embedder, batch_size: int, plan: Mapping[str, Any]) -> ShardContent:
    """Returns the rows of some chunks; a function of nothing but its arguments.

    Raises:
        ValueError: a vector is not finite in float16.
    """
    schema, seen = metadata_schema(plan["columns"]), []

    def noted() -> Iterator[Chunk]:
        for chunk in chunks:
            seen.append((chunk.faults, chunk.without))
            yield chunk

    halves, tables = [np.empty((0, embedder.dim), np.float16)], []
    for vectors, entries in embed_ahead(embedder, batches(noted(), batch_size)):
        halves.append(to_half(vectors, [entry["image_id"] for entry in entries]))
        tables.append(pa.RecordBatch.from_pylist(entries, schema))
    faults = [fault for found, _ in seen for fault in found]
    table = pa.Table.from_batches(tables, schema)
    return ShardContent(np.concatenate(halves), table, faults, sum(without for _, without in seen))


def check_unreadable(path: Path, unreadable: list[dict[str, Any]], limit: int) -> None:
    """Raises ValueError if more pictures than the limit cannot be read, and writes down which."""
    if len(unreadable) > limit:
        write_json(path / REPORT, {"unreadable": unreadable})
        raise ValueError(
            f"{len(unreadable)} pictures cannot be read, expected at most max_broken={limit}; {path / REPORT} lists "
            "them; repair or remove them, or raise max_broken of the database, and run the same command again"
        )


def _write(path: Path, plan: dict[str, Any], start: int, stop: int, content: ShardContent, file: str) -> None:
    """Writes a shard, if it has rows, and notes it in the plan."""
    shard = write_content(path, plan, start, content)
    note(path, plan, stop, file, shard=shard, unreadable=content.unreadable, without=content.without)


def write_content(path: Path, plan: Mapping[str, Any], start: int, content: ShardContent) -> dict[str, Any] | None:
    """Writes the shard that begins at picture ``start``; returns its line of the table, None without rows."""
    if not len(content.vectors):
        return None
    name = f"{plan['first'] + start // plan['shard_rows']:05d}"
    return write_shard(path, name, content.vectors, content.table)


def note(
    path: Path,
    plan: dict[str, Any],
    stop: int,
    file: str,
    *,
    shard: dict[str, Any] | None,
    unreadable: list[dict[str, Any]],
    without: int,
) -> None:
    """Notes in a plan and its file that the pictures before ``stop`` are done."""
    plan["shards"] += [shard] if shard else []
    plan["unreadable"] = _all_unreadable(plan, unreadable)
    plan["without"] += without
    plan["next"] = stop
    with explained(path):
        write_json(path / file, plan)


def _all_unreadable(plan: Mapping[str, Any], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the unreadable pictures that a plan and a shard name, in order; after damage a shard is read again."""
    known = {fault["item"]: fault for fault in [*plan["unreadable"], *more]}
    return [known[item] for item in sorted(known)]


def finish(path: Path, plan: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Writes the report of unreadable pictures and then a card with the shards of a plan behind its own.

    Raises:
        ValueError: the plan has no rows.
    """
    rows = sum(shard["rows"] for shard in plan["shards"])
    if not rows:
        raise ValueError(
            f"none of the {plan['items']} images of {plan['source']['target']} gave a row: {len(plan['unreadable'])} "
            f"are not readable, {plan['without']} too small or without a box; there is nothing to build"
        )
    if plan["unreadable"]:
        report = read_json(path / REPORT, "")["unreadable"] if card["shards"] and (path / REPORT).is_file() else []
        new = {fault["uri"] for fault in plan["unreadable"]}
        kept = [fault for fault in report if fault["uri"] not in new]
        write_json(path / REPORT, {"unreadable": [*kept, *plan["unreadable"]]})
    source = {"source": plan["source"], "patches": plan["patches"], "shards": len(plan["shards"])}
    shards, sources = [*card["shards"], *plan["shards"]], [*card["sources"], source]
    total = sum(shard["rows"] for shard in shards)
    write_json(path / CARD, {**card, "rows": total, "sources": sources, "shards": shards})
    LOG.info(
        "database %s: %d rows, %d new; %d images left out as unreadable, %d as too small or without a box",
        path, total, rows, len(plan["unreadable"]), plan["without"],
    )  # fmt: skip


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as it reads back from JSON."""
    return json.loads(json.dumps(config))


def _counted(chunks: Iterable[Chunk], bar: tqdm) -> Iterator[Chunk]:
    for chunk in chunks:
        bar.update(chunk.pictures)
        yield chunk


def _first_metadata(images: Any) -> dict[str, str]:
    """Returns the strings of the first picture that has any; metadata may be unreadable like pictures."""
    for item in range(len(images)):
        try:
            return images.metadata(item)
        except ValueError:
            continue
    return {}
