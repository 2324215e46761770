"""The plan of a database build: the content of ``build.json``, or of ``append.json`` where pictures are appended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.files import read_json, write_json
from rdm.retrieval.database.rows import FORMAT
from rdm.retrieval.database.shards import TEXTS
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.policy import Patches

PLAN = "build.json"


@dataclass(frozen=True)
class WrittenShard:
    """What became of the pictures of one shard.

    Attributes:
        shard: the line of the shard table; None where no picture gave a row.
        unreadable: ``item``, ``uri`` and ``reason`` of each picture that cannot be read.
        without: number of pictures that the policy takes no patch of.
    """

    shard: dict[str, Any] | None
    unreadable: list[dict[str, Any]]
    without: int


@dataclass
class Plan:
    """What a build does and how much of it is done. The attributes stand in the order of the file.

    Attributes:
        format: version of the database's format.
        embedder: ``name`` and ``fingerprint`` of the embedder.
        dim: width of its vectors.
        source: ``{"target", "params"}`` of the data set.
        items: number of pictures to embed.
        shard_rows: pictures per shard.
        patches: the complete policy of patches.
        columns: text columns of the source in addition to those of every database.
        first: number of the first shard.
        ids: of an append: the hash of the ids of its pictures.
        base: of an append: the fingerprint of the database that it extends.
        next: number of pictures that are done.
        shards: the shard table so far.
        without: number of pictures that the policy takes no patch of.
        unreadable: ``item``, ``uri`` and ``reason`` of each picture that cannot be read.
    """

    format: int
    embedder: dict[str, str]
    dim: int
    source: dict[str, Any]
    items: int
    shard_rows: int
    patches: dict[str, Any]
    columns: list[str]
    first: int = 0
    ids: str | None = None
    base: str | None = None
    next: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    without: int = 0
    unreadable: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_file(cls, file: Path) -> Plan:
        """Returns the plan that a file holds.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged.
        """
        remedy = f"delete {file}"
        content = read_json(file, remedy)
        missing = {each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING}
        missing, unknown = missing - content.keys(), content.keys() - {each.name for each in fields(cls)}
        if missing or unknown:
            faults = [*(f"no '{key}'" for key in sorted(missing)), *(f"'{key}'" for key in sorted(unknown))]
            raise ValueError(f"{file} has {', '.join(faults)}, expected the plan of a build; {remedy}")
        return cls(**content)

    def write(self, file: Path) -> None:
        """Writes the plan, whole or not at all."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        write_json(file, {key: value for key, value in content.items() if value is not None})

    def ranges(self) -> list[tuple[int, int]]:
        """Returns the first picture and the one behind the last of each shard that is not written yet."""
        starts = range(self.next, self.items, self.shard_rows)
        return [(start, min(start + self.shard_rows, self.items)) for start in starts]

    def shard_name(self, start: int) -> str:
        """Returns the name of the shard that begins at picture ``start``."""
        return f"{self.first + start // self.shard_rows:05d}"

    def cut_before(self, place: int) -> None:
        """Forgets the shards from line ``place`` of the shard table on."""
        self.next = (int(self.shards[place]["name"]) - self.first) * self.shard_rows
        self.shards = self.shards[:place]

    def all_unreadable(self, more: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the unreadable pictures so far with further ones, in order, each once."""
        known = {fault["item"]: fault for fault in [*self.unreadable, *more]}  # a damaged shard is read twice
        return [known[item] for item in sorted(known)]

    def note(self, stop: int, written: WrittenShard) -> None:
        """Notes what became of the pictures before ``stop`` that were not done."""
        self.shards += [written.shard] if written.shard else []
        self.unreadable = self.all_unreadable(written.unreadable)
        self.without += written.without
        self.next = stop


def new_plan(
    source: Mapping[str, Any], images: Any, patches: Patches, embedder: Embedder, shard_rows: int, **append: Any
) -> Plan:
    """Returns the plan of a build that has not begun.

    Args:
        source: ``{"target", "params"}`` of the data set.
        images: the data set itself.
        patches: what to take of each picture.
        embedder: makes the vectors.
        shard_rows: pictures per shard.
        append: ``items``, ``first``, ``ids`` and ``base`` of an append, see :class:`Plan`.
    """
    return Plan(
        format=FORMAT,
        embedder={"name": embedder.name, "fingerprint": embedder.fingerprint},
        dim=embedder.dim,
        source=dict(source),
        shard_rows=shard_rows,
        patches=patches.config,
        columns=sorted(_first_metadata(images).keys() - {"id", *TEXTS}),
        **{"items": len(images), **append},
    )


def _first_metadata(images: Any) -> dict[str, str]:
    """Returns the metadata of the first picture whose metadata can be read."""
    for item in range(len(images)):
        try:
            return images.metadata(item)
        except ValueError:
            continue
    return {}
