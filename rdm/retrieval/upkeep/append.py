"""Appends pictures to a database.

``RetrievalDatabase.remove`` only marks rows. They keep their numbers, so indexes and neighbour tables stay valid and
leave them out. Append, compact and merge change the rows: older indexes and tables are refused and must be built again.
All of these operations can be killed at any moment, because the card changes last and in a single step.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ldm.data.identity import image_id
from ldm.locks import locked
from ldm.stopping import going_on
from ldm.util import instantiate_from_config
from rdm.retrieval.builder.build import embed_all
from rdm.retrieval.builder.plan import Plan, new_plan
from rdm.retrieval.builder.work import Build, Work
from rdm.retrieval.database.removed import changing, read_removed
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.shards import CARD
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)
APPEND_PLAN, APPEND_LOCK = "append.json", ".append.lock"


def append_pictures(
    path: str | Path,
    source: Mapping[str, Any],
    embedder: Embedder,
    *,
    patches: Mapping[str, Any] | None = None,
    **options: Any,
) -> RetrievalDatabase:
    """Embeds the pictures of a source that a database does not have yet; continues an append that was killed.

    The database has a picture if a row of the same source and policy has the picture's id. Existing rows keep their
    numbers and are not embedded again.

    Args:
        path: folder of the database.
        source: ``{"target", "params"}`` of a data set of ``ldm.data``: one that has grown, or a new one.
        embedder: the embedder that made the database.
        patches: the policy of patches, see :mod:`rdm.retrieval.patches.policy`.
        options: see :class:`rdm.retrieval.builder.work.Work`.

    Raises:
        FileNotFoundError: there is no finished database.
        ValueError: another embedder made the database, or see :func:`rdm.retrieval.builder.build.build_database`.
        OSError: the disk is full; the database is unchanged, and the same command continues the append.
    """
    path, work = Path(path), Work(**options)
    work.check()
    RetrievalDatabase.open(path, embedder)
    with locked(path / APPEND_LOCK, f"appending to {path}"):
        return append_locked(path, source, embedder, Patches(patches), work)


def append_locked(
    path: Path, source: Mapping[str, Any], embedder: Embedder, policy: Patches, work: Work
) -> RetrievalDatabase:
    """Appends pictures, see :func:`append_pictures`; the caller holds :data:`APPEND_LOCK`."""
    database = RetrievalDatabase.open(path, embedder)
    source = json.loads(json.dumps(source))
    images = instantiate_from_config(source)
    items, ids = _new_items(database, {"source": source, "patches": policy.config}, images)
    if (path / APPEND_PLAN).is_file():
        base = Plan.from_file(path / APPEND_PLAN).base
        if not items or base != database.fingerprint:  # left by a finished append, or of rows that have changed
            (path / APPEND_PLAN).unlink()
    if not items:
        LOG.info("nothing to append: database %s has all pictures of the source", path)
        return database
    extends = {"items": len(items), "ids": ids, "first": next_number(database), "base": database.fingerprint}
    plan = new_plan(source, images, policy, embedder, work.shard_rows, **extends)
    build = Build(path, APPEND_PLAN, plan, images, items, policy, embedder, work)
    build.resume()
    with going_on("its complete shards are kept, and the same command continues"):
        embed_all(build)
    if build.plan.shards:
        with changing(path / CARD):
            if RetrievalDatabase.open(path).fingerprint != build.plan.base:
                raise ValueError(f"database {path} was changed by another process; run the same command again")
            build.finish(database.card)
    else:
        LOG.info("nothing to append: all %d new pictures are unreadable or too small, or have no box", len(items))
    (path / APPEND_PLAN).unlink()
    return RetrievalDatabase.open(path, embedder)


def _new_items(database: RetrievalDatabase, entry: Mapping[str, Any], images: Any) -> tuple[list[int], str]:
    """Returns the numbers of the pictures of a source that have no row yet, and the hash of their ids."""
    owners, known = database.sources_of(np.arange(len(database))), []
    ours = [n for n, source in enumerate(database.sources) if all(source[key] == entry[key] for key in entry)]
    if ours:
        known = database.column("image_id").filter(pa.array(np.isin(owners, ours)))
    ids = pa.array([image_id(images, number) for number in range(len(images))])
    new = np.flatnonzero(~pc.is_in(ids, value_set=pa.array(known, pa.string())).to_numpy(zero_copy_only=False))
    digest = hashlib.sha256("\n".join(ids.take(pa.array(new)).to_pylist()).encode()).hexdigest()
    return new.tolist(), digest


def next_number(database: RetrievalDatabase) -> int:
    """Returns a number that neither a shard of the table nor a mark of removed rows uses."""
    names = {shard["name"] for shard in database.card["shards"]} | read_removed(database.path).keys()
    return 1 + max(map(int, names))
