"""The plan of a database build: what has been done, what is left, and the card that ends it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.files import file_hash, read_json, write_json
from rdm.retrieval.builder.shard import Work
from rdm.retrieval.database.rows import CARD, FORMAT
from rdm.retrieval.database.shards import KINDS, TEXTS, explained, shard_file
from rdm.retrieval.embedder import Embedder, check_embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)
PLAN = "build.json"
REPORT = "unreadable.json"  # pictures that have no row because they cannot be read


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


def check_unreadable(path: Path, unreadable: list[dict[str, Any]], limit: int) -> None:
    """Raises ValueError if more pictures than the limit cannot be read, and writes down which."""
    if len(unreadable) > limit:
        write_json(path / REPORT, {"unreadable": unreadable})
        raise ValueError(
            f"{len(unreadable)} pictures cannot be read, expected at most max_broken={limit}; {path / REPORT} lists "
            "them; repair or remove them, or raise max_broken of the database, and run the same command again"
        )


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


def _first_metadata(images: Any) -> dict[str, str]:
    """Returns the strings of the first picture that has any; metadata may be unreadable like pictures."""
    for item in range(len(images)):
        try:
            return images.metadata(item)
        except ValueError:
            continue
    return {}
