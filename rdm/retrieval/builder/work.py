"""The options of a build, and the state that its steps share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.files import file_hash, read_json, write_json
from ldm.locks import LOCK
from rdm.retrieval.builder.plan import PLAN, Plan, WrittenShard
from rdm.retrieval.database.shards import CARD, KINDS, explained, shard_file
from rdm.retrieval.embedder import Embedder, check_embedder
from rdm.retrieval.patches.policy import Patches

LOG = logging.getLogger(__name__)
SHARD_ROWS = 65536
REPORT = "unreadable.json"  # pictures that have no row because they cannot be read
# An unfinished build is continued only where these are equal. It keeps its own shard_rows.
_COMPARED = ("format", "dim", "source", "items", "patches", "columns", "first", "ids", "base")


@dataclass(frozen=True)
class Work:
    """The options of a build; only ``shard_rows`` and ``batch_size`` can change bytes of the database.

    Attributes:
        batch_size: patches embedded at once.
        shard_rows: pictures of the source per shard; a continued build keeps the number that it began with.
        workers: processes that read pictures ahead; None for one per core, at most 8.
        max_broken: number of unreadable pictures to tolerate; None for the limit of the source.
        progress: show a progress bar.
        ray: address of a Ray cluster whose machines embed the pictures, see :mod:`rdm.retrieval.builder.on_ray`; None
            for this process.
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
        """Returns how many processes of a machine read pictures ahead, given the number of chunks and of cores."""
        return min(8, cores, chunks // 8) if self.workers is None else self.workers


@dataclass
class Build:
    """A build or an append that is under way.

    Attributes:
        path: folder of the database.
        file: name of the plan's file in it.
        plan: what is done and what is left; :meth:`resume` and :meth:`note` change it.
        images: the data set.
        items: numbers of the pictures to embed.
        patches: the policy of patches.
        embedder: makes the vectors.
        work: the options.
    """

    path: Path
    file: str
    plan: Plan
    images: Any
    items: Sequence[int]
    patches: Patches
    embedder: Embedder
    work: Work

    def resume(self) -> None:
        """Continues the plan on disk after its last undamaged shard, or writes the plan if there is none.

        Raises:
            ValueError: the unfinished build on disk differs from this one, or the folder holds something else.
        """
        path, file = self.path, self.path / self.file
        if not file.is_file():
            ours = (f".{PLAN}.*.tmp", LOCK)
            there = path.iterdir() if self.file == PLAN and path.is_dir() else ()
            if any(not any(it.match(name) for name in ours) for it in there):
                raise ValueError(f"{path} is not empty and holds no database; name another path or empty it")
            self.plan.write(file)
            return
        plan, wanted = Plan.from_file(file), self.plan
        unused = path if self.file == PLAN else file
        remedy = f"finish it with those settings, or, if no other process is at work on it, delete {unused}"
        check_embedder(plan.embedder, self.embedder, f"the unfinished build at {path}", remedy)
        for key in _COMPARED:
            there, expected = getattr(plan, key), getattr(wanted, key)
            if there != expected:
                raise ValueError(f"the unfinished build at {path} has {key} {there!r}, got {expected!r}; {remedy}")
        for leftover in path.rglob(".*.tmp"):
            leftover.unlink()
        for place, shard in enumerate(plan.shards):
            if any(file_hash(shard_file(path, kind, shard["name"])) != shard[kind] for kind in KINDS):
                LOG.warning(
                    "shard %s of the unfinished build is damaged; it and the shards after it are built again",
                    shard["name"],
                )
                plan.cut_before(place)
                break
        LOG.info("continuing the build at %s after %d of %d images", path, plan.next, plan.items)
        self.plan = plan

    def check_unreadable(self, more: Sequence[dict[str, Any]]) -> None:
        """Raises ValueError if too many pictures cannot be read, and writes down which they are.

        Args:
            more: unreadable pictures that the plan does not name yet.
        """
        limit = self.images.max_broken if self.work.max_broken is None else self.work.max_broken
        unreadable = self.plan.all_unreadable(more)
        if len(unreadable) > limit:
            write_json(self.path / REPORT, {"unreadable": unreadable})
            raise ValueError(
                f"{len(unreadable)} pictures cannot be read, expected at most max_broken={limit}; {self.path / REPORT} "
                "lists them; repair or remove them, or raise max_broken of the database, and run the same command again"
            )

    def note(self, stop: int, written: WrittenShard) -> None:
        """Notes in the plan and its file what became of the pictures before ``stop``.

        Raises:
            OSError: the file cannot be written.
        """
        self.plan.note(stop, written)
        with explained(self.path):
            self.plan.write(self.path / self.file)

    def finish(self, card: Mapping[str, Any]) -> None:
        """Writes the report of unreadable pictures and then the card, with the new shards behind those it has.

        Args:
            card: the database's card without the new shards.

        Raises:
            ValueError: no picture gave a row.
        """
        path, plan = self.path, self.plan
        rows = sum(shard["rows"] for shard in plan.shards)
        if not rows:
            raise ValueError(
                f"none of the {plan.items} images of {plan.source['target']} gave a row: {len(plan.unreadable)} "
                f"are unreadable, {plan.without} are too small or have no box; check the source and the patches"
            )
        if plan.unreadable:
            report = read_json(path / REPORT, "")["unreadable"] if card["shards"] and (path / REPORT).is_file() else []
            new = {fault["uri"] for fault in plan.unreadable}
            kept = [fault for fault in report if fault["uri"] not in new]
            write_json(path / REPORT, {"unreadable": [*kept, *plan.unreadable]})
        source = {"source": plan.source, "patches": plan.patches, "shards": len(plan.shards)}
        shards, sources = [*card["shards"], *plan.shards], [*card["sources"], source]
        total = sum(shard["rows"] for shard in shards)
        write_json(path / CARD, {**card, "rows": total, "sources": sources, "shards": shards})
        LOG.info(
            "database %s has %d rows, of which %d are new; %d images are unreadable, %d are too small or have no box",
            path, total, rows, len(plan.unreadable), plan.without,
        )  # fmt: skip
