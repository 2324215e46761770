"""Says what a database is: its rows, their licences, sources and styles, its index, and the disk that it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ldm.files import read_json
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.search import check_types

STYLE = "style"
_INDEX = Path("index") / "index.json"
_LISTED = 20  # values of each kind in the lines
# The beginning of a URI that a row shares with the others of its source: a web site, a file of many pictures, a folder.
_BEGINNING = r"^([A-Za-z][\w+.-]*://[^/]*/|.*#|.*/)?.*$"


@dataclass(frozen=True)
class Summary:
    """What a database is.

    Attributes:
        path: its folder.
        rows: number of rows, including removed ones.
        living: number of rows that are not removed.
        dim: width of an embedding, D.
        embedder: name of the embedder that made it.
        licences: number of living rows of each licence, most first; "" stands for an unknown one.
        sources: the same of the beginnings of their URIs, such as a file or a folder, see :func:`find_rows`.
        styles: the same of the styles; empty if the database has no such column.
        index: the card of the index; None if there is none of these rows.
        bytes: size on the disk in bytes of ``rows``, ``index``, ``neighbours`` and ``other``; of files in the folder.
    """

    path: Path
    rows: int
    living: int
    dim: int
    embedder: str
    licences: dict[str, int]
    sources: dict[str, int]
    styles: dict[str, int]
    index: Mapping[str, Any] | None
    bytes: dict[str, int]

    def lines(self) -> Iterator[str]:
        """Yields the summary as lines of text."""
        removed = f", {self.rows - self.living} more are removed" if self.rows > self.living else ""
        yield f"{self.living} rows of {self.dim} numbers, made by {self.embedder}{removed}"
        for name, counts in (("licences", self.licences), ("sources", self.sources), ("styles", self.styles)):
            if counts:
                first = [f"{value or 'unknown'} {count}" for value, count in list(counts.items())[:_LISTED]]
                more = [f"{len(counts) - _LISTED} more"] if len(counts) > _LISTED else []
                yield f"{name}: {', '.join(first + more)}"
        yield f"index: {self.index_words()}"
        yield "disk: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.bytes.items() if size)

    def index_words(self) -> str:
        """Returns the kind of the index, its recall, its time per query and its memory in words."""
        card = self.index
        if card is None:
            return "none of these rows; the next search builds it"
        recalls = [
            f"{name} {values[name]:.1%} of {kind}s"
            for kind, values in card.get("recall", {}).items()
            for name in values
            if name.startswith("recall@")
        ]
        times = card.get("ms_per_query", {})
        parts = [f"{card['factory']}{' (exact)' if card['factory'] == 'Flat' else ''}", *recalls]
        parts += [f"{times['single']:.1f} ms per query"] if "single" in times else []
        parts += [f"{card['bytes'] / 1e6:.1f} MB of memory"] if "bytes" in card else []
        return ", ".join(parts)


def summary(database: RetrievalDatabase, counted: bool = True) -> Summary:
    """Returns what a database is.

    Args:
        database: the database.
        counted: whether licences, sources and styles are counted, for which the metadata of all rows are read, one
            shard at a time; otherwise there are none.

    Raises:
        ValueError: a file of the database is damaged.
    """
    licences, sources, styles = Counter[str](), Counter[str](), Counter[str]()
    for number in range(len(database.card["shards"]) if counted else 0):
        alive = pa.array(database.is_alive(slice(*database.starts[number : number + 2])))
        licences.update(_counts(database.cells(number, "licence").filter(alive)))
        uris = database.cells(number, "uri").filter(alive)
        sources.update(_counts(pc.replace_substring_regex(uris, _BEGINNING, r"\1")))
        if database.stored_as(number, STYLE) is not None:
            styles.update(_counts(database.cells(number, STYLE).filter(alive)))
    file = database.path / _INDEX
    card = read_json(file, "delete it") if file.is_file() else {}
    check_types(card, file.parent)
    return Summary(
        database.path,
        len(database),
        database.living_count,
        database.dim,
        database.card["embedder"]["name"],
        dict(licences.most_common()),
        dict(sources.most_common()),
        dict(styles.most_common()),
        card if card.get("database") == database.fingerprint else None,
        _bytes(database.path),
    )


def _counts(cells: pa.ChunkedArray) -> dict[str, int]:
    """Returns how often each value occurs."""
    return {each["values"]: each["counts"] for each in pc.value_counts(cells).to_pylist()}


def _bytes(path: Path) -> dict[str, int]:
    """Returns the size of the parts of the folder of a database in bytes."""
    parts = {"embeddings": "rows", "metadata": "rows", "index": "index", "neighbours": "neighbours"}
    sizes = dict.fromkeys((*parts.values(), "other"), 0)
    for file in path.rglob("*"):
        if file.is_file():
            sizes[parts.get(file.relative_to(path).parts[0], "other")] += file.stat().st_size
    return sizes
