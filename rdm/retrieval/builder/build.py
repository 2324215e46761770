"""Builds a retrieval database one shard at a time: reads pictures, embeds them and writes the shard.

A shard covers a fixed range of the source. It is written under a temporary name, flushed, renamed and then noted in
``build.json``. A build that was killed continues after the last noted shard and ends in the same bytes. The card
``database.json`` is written last, so a folder with a card is complete. Other processes read pictures ahead and a thread
writes finished shards, so that the embedder does not wait. On a Ray cluster each machine does this for shards of its
own (:mod:`rdm.retrieval.builder.on_ray`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.data.hub import check_random_access
from ldm.locks import building, delete_left_lock
from ldm.stopping import going_on
from ldm.util import instantiate_from_config
from rdm.retrieval.builder.forecast import forecast
from rdm.retrieval.builder.on_ray import shards_on_ray
from rdm.retrieval.builder.plan import PLAN, new_plan
from rdm.retrieval.builder.read_ahead import Chunk, chunks_of, read_chunks
from rdm.retrieval.builder.shard import ShardContent, embed_shard, write_content
from rdm.retrieval.builder.work import Build, Work
from rdm.retrieval.database.rows import CARD, RetrievalDatabase
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)


def prepare_database(
    path: str | Path,
    source: Mapping[str, Any],
    embedder: Embedder,
    *,
    patches: Mapping[str, Any] | None = None,
    **options: Any,
) -> RetrievalDatabase:
    """Returns the database at ``path``; builds or completes it first if it is not finished.

    Of several processes, one builds and the others wait for it.

    Args:
        path: the folder.
        source: ``{"target", "params"}`` of the pictures, see :func:`build_database`.
        embedder: makes the vectors; a database made by another embedder is refused.
        patches: the policy of patches, see :mod:`rdm.retrieval.patches.policy`.
        options: further arguments of :func:`build_database`.

    Raises:
        ValueError: the database was made by another embedder or from another source, or it is damaged.
    """
    path = Path(path)
    if not (path / CARD).is_file():
        with building(path):
            if not (path / CARD).is_file():
                return build_database(path, source, embedder, patches=patches, **options)
    database = RetrievalDatabase.open(path, embedder)
    check_source(database, source, patches)
    (path / PLAN).unlink(missing_ok=True)  # left behind by a process that was killed after writing the card
    delete_left_lock(path)
    return database


def check_source(
    database: RetrievalDatabase, source: Mapping[str, Any], patches: Mapping[str, Any] | None = None
) -> None:
    """Checks that a database, or a part of it, was built from these pictures.

    Raises:
        ValueError: it was not; the message says what it was built from.
    """
    wanted = {"source": _plain(source), "patches": Patches(patches).config}
    made_from = [{key: entry[key] for key in wanted} for entry in database.sources]
    if wanted not in made_from:
        raise ValueError(
            f"database {database.path} was built from {json.dumps(made_from[0])}, got {json.dumps(wanted)}; "
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
        path: folder of the new database, which must not hold anything else.
        source: ``{"target", "params"}`` of a data set of ``ldm.data``. It is stored in the card, so that the pictures
            of rows can be shown later. Relative paths in it start from the working directory.
        embedder: makes the vectors.
        patches: the policy of patches, see :mod:`rdm.retrieval.patches.policy`; None takes whole pictures.
        options: see :class:`rdm.retrieval.builder.work.Work`.

    Returns:
        The finished database. Pictures that cannot be read have no row and are listed in ``unreadable.json``.

    Raises:
        ValueError: the folder holds a finished database or an unfinished build of another one, too few pictures are
            readable, or a vector is not finite in float16.
        OSError: the disk is full; complete shards are kept, and the same command continues the build.
    """
    path, work = Path(path), Work(**options)
    work.check()
    if (path / CARD).is_file():
        raise ValueError(f"there is already a finished database at {path}; delete it or name another path")
    images, policy = instantiate_from_config(_plain(source)), Patches(patches)
    check_random_access(images, f"database {path}")
    plan = new_plan(_plain(source), images, policy, embedder, work.shard_rows)
    build = Build(path, PLAN, plan, images, range(len(images)), policy, embedder, work)
    build.resume()
    with going_on("its complete shards are kept, and the same command continues"):
        embed_all(build)
    card = {"format": build.plan.format, "embedder": build.plan.embedder, "dim": build.plan.dim}
    build.finish({**card, "dtype": "float16", "sources": [], "shards": []})
    (path / PLAN).unlink(missing_ok=True)  # another process that found the card may have done so
    return RetrievalDatabase.open(path, embedder)


def embed_all(build: Build) -> None:
    """Writes the shards that the plan of a build lacks, and keeps the plan and its file up to date.

    Raises:
        ValueError: see :func:`build_database`.
        OSError: a shard cannot be written.
    """
    ranges, items, work = build.plan.ranges(), build.items, build.work
    by_shard = [chunks_of(items[start:stop]) for start, stop in ranges]
    chunks = [chunk for of_shard in by_shard for chunk in of_shard]
    workers = work.readers(len(chunks), os.cpu_count() or 1)
    LOG.info("%s", forecast(build, workers))
    bar = tqdm(total=len(items), initial=build.plan.next, unit="img", desc="database", disable=not work.progress)
    if work.ray is not None:
        with bar, closing(shards_on_ray(build, ranges)) as shards:
            for (start, stop), written in zip(ranges, shards, strict=True):
                build.check_unreadable(written.unreadable)
                build.note(stop, written)
                bar.update(stop - start)
        return
    stream = read_chunks(build.images, build.patches, chunks, workers)
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer, bar:
        for (start, stop), of_shard in zip(ranges, by_shard, strict=True):
            content = embed_shard(build, _counted(islice(stream, len(of_shard)), bar))
            if writing is not None:
                writing.result()  # at most one shard waits while the next one fills
            build.check_unreadable(content.unreadable)
            writing = writer.submit(_write, build, start, stop, content)
        if writing is not None:
            writing.result()


def _write(build: Build, start: int, stop: int, content: ShardContent) -> None:
    """Writes a shard, unless it has no rows, and notes it in the plan."""
    build.note(stop, write_content(build, start, content))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as plain JSON types."""
    return json.loads(json.dumps(config))


def _counted(chunks: Iterable[Chunk], bar: tqdm) -> Iterator[Chunk]:
    for chunk in chunks:
        bar.update(chunk.pictures)
        yield chunk
