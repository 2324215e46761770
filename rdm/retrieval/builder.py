"""Builds a retrieval database: read -> embed -> write, a shard at a time.

A shard covers a fixed range of the source. Each is written under a temporary name, flushed and renamed, and
then noted in ``build.json``; a build that was killed continues after the last noted shard and ends in the
same bytes. The card ``database.json`` comes last, so a folder with a card is complete.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ldm.files import file_hash, read_json, write_json
from ldm.util import atomic_path, instantiate_from_config
from rdm.retrieval.database import CARD, FORMAT, NUMBERS, TEXTS, RetrievalDatabase, shard_file
from rdm.retrieval.embedder import Embedder, check_embedder, embed_images, image_id, picture_hash, to_pixels

LOG = logging.getLogger(__name__)
PLAN = "build.json"
SHARD_ROWS = 65536


def prepare_database(
    path: str | Path, source: Mapping[str, Any], embedder: Embedder, **options: Any
) -> RetrievalDatabase:
    """Returns the database at ``path``, building or completing it first where it is not finished.

    Args:
        path: the folder.
        source: ``{"target", "params"}`` of the pictures, see :func:`build_database`.
        embedder: makes the vectors; a database that another one made is refused.
        options: further arguments of :func:`build_database`.

    Raises:
        ValueError: the database there was made by another embedder or from another source, or is damaged.
    """
    path = Path(path)
    if (path / CARD).is_file():
        database = RetrievalDatabase.open(path, embedder)
        if database.card["source"] != json.loads(json.dumps(source)):
            made_from, asked = json.dumps(database.card["source"]), json.dumps(source)
            raise ValueError(
                f"database {path} was built from {made_from}, got {asked}; "
                f"delete {path} or name another path, and build again"
            )
        (path / PLAN).unlink(missing_ok=True)  # a kill between writing the card and this leaves it behind
        return database
    return build_database(path, source, embedder, **options)


def build_database(
    path: str | Path,
    source: Mapping[str, Any],
    embedder: Embedder,
    *,
    batch_size: int = 256,
    shard_rows: int = SHARD_ROWS,
    progress: bool = True,
) -> RetrievalDatabase:
    """Embeds every picture of a source whole and writes the database; continues a build that was killed.

    Args:
        path: folder to write; it is made, and holds nothing but this database.
        source: ``{"target", "params"}`` of a data set of ``ldm.data``. It is stored, so that the pictures of
            rows can be shown again; relative paths in it start from the folder the programs run in.
        embedder: makes the vectors.
        batch_size: pictures embedded at once.
        shard_rows: pictures of the source per shard; a build that is continued keeps its own.
        progress: show a bar.

    Returns:
        The finished database. Pictures that cannot be read have no row.

    Raises:
        ValueError: a database is there already, a partial build of something else is there, no picture is
            readable, or a vector is not finite in float16.
    """
    path = Path(path)
    if (path / CARD).is_file():
        raise ValueError(f"there is a finished database at {path} already; delete it or name another path")
    if batch_size < 1 or shard_rows < 1:
        raise ValueError(f"got batch_size={batch_size}, shard_rows={shard_rows}, expected both at least 1")
    source = json.loads(json.dumps(source))
    images = instantiate_from_config(source)
    plan = _resume(path, _new_plan(source, images, embedder, shard_rows), embedder)
    with tqdm(total=len(images), initial=plan["next"], unit="img", desc="database", disable=not progress) as bar:
        while plan["next"] < len(images):
            stop = min(plan["next"] + plan["shard_rows"], len(images))
            vectors, entries = _embed_range(images, plan["next"], stop, embedder, batch_size, bar)
            if entries:
                name = f"{plan['next'] // plan['shard_rows']:05d}"
                plan["shards"].append(_write_shard(path, name, vectors, entries, plan["columns"]))
            plan["next"] = stop
            write_json(path / PLAN, plan)
    card = _card(plan)
    if not card["rows"]:
        raise ValueError(
            f"none of the {len(images)} images of {source['target']} is readable; there is nothing to build"
        )
    write_json(path / CARD, card)
    (path / PLAN).unlink()
    LOG.info(
        "built database %s: %d rows, %d images left out as unreadable",
        path,
        card["rows"],
        len(images) - card["rows"],
    )
    return RetrievalDatabase.open(path, embedder)


def _new_plan(source: Mapping[str, Any], images: Any, embedder: Embedder, shard_rows: int) -> dict[str, Any]:
    """Returns what a build does and how far it is; a build is continued only by a plan like its own."""
    known = {"id", *TEXTS}
    return {
        "format": FORMAT,
        "embedder": {"name": embedder.name, "fingerprint": embedder.fingerprint},
        "dim": embedder.dim,
        "source": source,
        "items": len(images),
        "shard_rows": shard_rows,
        "patches": {"policy": "whole"},
        "columns": sorted(key for key in images[0] if key not in known and key != "image"),
        "next": 0,
        "shards": [],
    }


def _card(plan: Mapping[str, Any]) -> dict[str, Any]:
    rows = sum(shard["rows"] for shard in plan["shards"])
    kept = {key: plan[key] for key in ("format", "embedder", "dim", "patches", "source", "shards")}
    return {**kept, "dtype": "float16", "rows": rows}


def _resume(path: Path, plan: dict[str, Any], embedder: Embedder) -> dict[str, Any]:
    """Returns the plan to follow: the one at ``path``, cut back to its undamaged shards, or else ``plan``."""
    if not (path / PLAN).is_file():
        if path.is_dir() and any(not file.match(f".{PLAN}.*.tmp") for file in path.iterdir()):
            raise ValueError(f"{path} is not empty and holds no database; name another path or empty it")
        write_json(path / PLAN, plan)
        return plan
    found = read_json(path / PLAN, f"delete {path}")
    remedy = f"finish it with that one, or delete {path}"
    check_embedder(found["embedder"], embedder, f"the unfinished build at {path}", remedy)
    for key in plan.keys() - {"next", "shards", "embedder", "shard_rows"}:
        if found.get(key) != plan[key]:
            raise ValueError(
                f"the unfinished build at {path} has {key} {found.get(key)!r}, got {plan[key]!r}; {remedy}"
            )
    for leftover in path.rglob(".*.tmp"):
        leftover.unlink()
    for place, shard in enumerate(found["shards"]):
        files = {kind: shard_file(path, kind, shard["name"]) for kind in ("embeddings", "metadata")}
        if any(file_hash(file) != shard[kind] for kind, file in files.items()):
            LOG.warning("shard %s of the unfinished build is damaged; building again from there", shard["name"])
            found["shards"], found["next"] = found["shards"][:place], int(shard["name"]) * found["shard_rows"]
            break
    LOG.info("continuing the build at %s after %d of %d images", path, found["next"], found["items"])
    return found


def _embed_range(
    images: Any, start: int, stop: int, embedder: Embedder, batch_size: int, bar: tqdm
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Returns vectors ``[n, D] float16`` and metadata of the readable pictures ``start .. stop - 1``."""
    vectors, entries = [], []
    for first in range(start, stop, batch_size):
        numbers = range(first, min(first + batch_size, stop))
        # In place of a broken picture the data set delivers the next good one, which has its own row.
        items = [(n, item) for n in numbers if (item := images[n])["id"] == image_id(images, n)]
        if items:
            names = [item["id"] for _, item in items]
            raw = embed_images(embedder, [item["image"] for _, item in items], names)
            with np.errstate(over="ignore"):
                half = raw.astype(np.float16)
            if not np.isfinite(half).all():
                name = names[int(np.argmin(np.isfinite(half).all(axis=1)))]
                raise ValueError(f"the vector of image '{name}' reaches {np.abs(raw).max():.0f}, float16 ends at 65504")
            vectors.append(half)
            entries += [_entry(number, item) for number, item in items]
        bar.update(len(numbers))
    return np.concatenate(vectors) if vectors else np.empty((0, embedder.dim), np.float16), entries


def _entry(number: int, item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata row of a whole picture."""
    pixels = to_pixels(item["image"])
    texts = {key: value for key, value in item.items() if key not in ("id", "image")}
    box = {"x0": 0, "y0": 0, "x1": pixels.shape[1], "y1": pixels.shape[0]}
    return {**texts, "image_id": item["id"], "item": number, **box, "sha256": picture_hash(pixels)}


def _write_shard(
    path: Path, name: str, vectors: np.ndarray, entries: list[dict[str, Any]], extra_columns: list[str]
) -> dict[str, Any]:
    """Writes one shard and returns its line of the shard table."""
    numbers = [(column, pa.int64() if column == "item" else pa.int32()) for column in NUMBERS]
    texts = [(column, pa.string()) for column in (*TEXTS, *extra_columns)]
    table = pa.Table.from_pylist(entries, schema=pa.schema([*texts[:1], *numbers, *texts[1:]]))
    files = {kind: shard_file(path, kind, name) for kind in ("embeddings", "metadata")}
    with atomic_path(files["embeddings"]) as temporary, temporary.open("wb") as stream:
        np.save(stream, vectors, allow_pickle=False)
    with atomic_path(files["metadata"]) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return {"name": name, "rows": len(vectors), **{kind: file_hash(file) for kind, file in files.items()}}
