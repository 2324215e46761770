"""Removal: after `remove` and `compact`, no file of a database has anything of the removed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import QUIET, ProjectionEmbedder, contents
from PIL import Image

from ldm.files import file_hash
from ldm.pictures import from_uint8
from ldm.table import ResumableTable
from ldm.util import instantiate_from_config
from rdm.data.references import GridTable, ReferenceTable
from rdm.data.row_tables import RowTable
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex, current_index
from rdm.retrieval.neighbours.build import build_neighbour_table
from rdm.retrieval.neighbours.popularity import write_popularity
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.retrieval.upkeep.append import append_pictures
from rdm.retrieval.upkeep.compact import compact
from rdm.retrieval.upkeep.duplicates import FILE, find_duplicates, write_duplicates
from rdm.retrieval.upkeep.merge import merge_databases

GONE = "quagga"  # in every name and text of what is removed
KEPT = "okapi"
FOLDERS = ("embeddings", "metadata", "index", "references", "tokens-2", "added")  # which hold something of every row


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    """With everything that its folder can hold: three sources, an index, tables, counts, duplicates, added pictures."""
    params: dict[str, Any] = {"size": 8}
    for name, seeds in (("first", range(12)), (GONE, range(12, 17))):
        for seed in seeds:
            kind = GONE if name == GONE or seed % 4 == 1 else KEPT
            file = tmp_path / name / f"{kind}-class" / f"{kind}-{seed:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(file)
            file.with_suffix(".txt").write_text(f"a {kind} of number {seed}")
    first, second = (
        {"target": "ldm.data.ImageFolder", "params": {**params, "root": str(tmp_path / name)}}
        for name in ("first", GONE)
    )
    embedder = ProjectionEmbedder()
    path = build_database(tmp_path / "db", first, embedder, **QUIET).path
    append_pictures(path, second, embedder, **QUIET)
    for seeds in ((20, 21), (22, 23), (24, 25)):
        new = [
            NewPicture(picture(seed), f"{kind} licence", f"A. {kind} Uthor", f"an added {kind} {seed}")
            for seed, kind in zip(seeds, (GONE, GONE if seeds[0] == 24 else KEPT), strict=True)
        ]
        add_pictures(path, new, embedder)
    grown = RetrievalDatabase.open(path, embedder)
    index = NeighbourIndex.open(grown, "Flat", progress=False)
    images = instantiate_from_config(first)
    build_neighbour_table(path / "neighbours/train", images, embedder, grown, index, k=6, progress=False)
    write_popularity(grown, np.arange(len(grown)), np.arange(len(grown)), "counted")
    write_duplicates(grown, find_duplicates(grown, index, 0.4, progress=False))
    for kind, folder in ((ReferenceTable, "references"), (GridTable, "tokens-2")):
        fill(kind, path / folder, grown)
    return grown


def fill(kind: type[RowTable], path: Path, database: RetrievalDatabase) -> RowTable:
    """A table of values that are made of the pictures of all rows."""

    def values_of(rows: np.ndarray) -> torch.Tensor:
        pixels = torch.stack([from_uint8(torch.from_numpy(patch)) for patch in database.patches(rows)])
        return pixels[:, :4, :4].flatten(1) if kind is GridTable else pixels[:, 4:]

    return kind.prepare(path, database, [np.arange(len(database))], {"made_by": "pixels"}, values_of, progress=False)


def readable(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder; of compressed ones also what is in them."""
    for name, data in contents(path).items():
        yield name, data + name.encode()
        if name.endswith(".parquet"):
            for cells in pq.read_table(path / name).to_pydict().values():
                values = [cell.get("bytes", b"") if isinstance(cell, dict) else cell for cell in cells]
                yield name, b"\n".join(each if isinstance(each, bytes) else str(each).encode() for each in values)
        if name.endswith(".npz"):
            with np.load(path / name) as arrays:
                yield name, b"".join(arrays[each].tobytes() for each in arrays.files)


def traces(database: RetrievalDatabase, rows: np.ndarray) -> list[bytes]:
    """What may be left of rows: texts, vectors in all forms that are stored, values of tables, and their pictures."""
    found = [GONE.encode()]
    for vector in database.embeddings(rows).astype(np.float32):
        unit = vector / np.linalg.norm(vector)
        found += [each.astype(kind).tobytes() for each in (vector, unit) for kind in (np.float16, np.float32)]
    for kind, folder in ((ReferenceTable, "references"), (GridTable, "tokens-2")):
        values = kind.open(database.path / folder, database).of_rows(rows).numpy()
        found += [value.astype(dtype).tobytes() for value in values for dtype in (np.float16, np.float32)]
    for entry, pixels in zip(database.metadata(rows), database.patches(rows), strict=True):
        found += [entry[key].encode() for key in ("image_id", "uri", "caption", "sha256", "attribution") if entry[key]]
        found.append(pixels.tobytes())
    return found


def holding(path: Path, wanted: list[bytes]) -> dict[str, set[bytes]]:
    """The files below a folder that hold some of the wanted bytes."""
    found: dict[str, set[bytes]] = {}
    for name, data in readable(path):
        if held := {each for each in wanted if each in data}:
            found[name] = found.get(name, set()) | held
    return found


def gone(database: RetrievalDatabase) -> np.ndarray:
    names = [number for number, each in enumerate(database.metadata(np.arange(len(database)))) if GONE in str(each)]
    return np.array(names)


def test_nothing_of_removed_rows_is_left(database: RetrievalDatabase) -> None:
    rows = gone(database)
    assert len(rows) == 3 + 5 + 4 and len(database) == 12 + 5 + 6
    wanted = traces(database, rows)
    before = holding(database.path, wanted)
    assert {name.split("/")[0] for name in before} == {*FOLDERS, FILE, "database.json"}  # the search finds them all
    living = np.setdiff1d(np.arange(len(database)), rows)
    facts, vectors = database.metadata(living), database.embeddings(living)
    pixels = database.patches(living)
    assert database.remove(rows) == len(rows)
    compacted = compact(database.path)
    assert holding(database.path, wanted) == {}
    assert len(compacted) == len(living) and compacted.removed == 0
    assert compacted.metadata(np.arange(len(living))) == facts
    np.testing.assert_array_equal(compacted.embeddings(np.arange(len(living))), vectors)
    np.testing.assert_array_equal(compacted.patches(np.arange(len(living))), pixels)  # of added pictures, too
    compacted.verify()
    index = current_index(compacted, progress=False)
    assert index.card["factory"] == "Flat" and index.search(vectors, 1).rows.ravel().tolist() == list(range(11))
    fill(ReferenceTable, compacted.path / "references", compacted)
    fill(GridTable, compacted.path / "tokens-2", compacted)
    assert holding(database.path, wanted) == {}
    again, (row,) = add_pictures(database.path, [NewPicture(picture(20), "CC0-1.0", "A. Uthor")], ProjectionEmbedder())
    np.testing.assert_array_equal(again.patches([row])[0], np.asarray(picture(20)))


def test_rows_that_are_only_marked_are_still_in_the_files(database: RetrievalDatabase) -> None:
    """As the page on databases says; the marks themselves hold row numbers only."""
    rows = gone(database)
    wanted, before = traces(database, rows), contents(database.path)
    database.remove(rows)
    after = contents(database.path)
    assert after.pop("removed.npz") and after == before
    assert "removed.npz" not in holding(database.path, wanted)


def test_what_killed_processes_have_left_goes_as_well(database: RetrievalDatabase) -> None:
    rows = gone(database)
    wanted = traces(database, rows)
    values = ReferenceTable.open(database.path / "references", database).values
    half = ResumableTable(database.path / "tokens-3", 100, {"database": database.fingerprint})
    half.append(tokens=np.array(values))
    data = (database.path / "index/index.faiss").read_bytes()
    (database.path / "index/.index.faiss.1.tmp").write_bytes(data)
    (database.path / f".{FILE}.1.tmp").write_text(GONE)
    (database.path / "added/.00009.parquet.1.tmp").write_text(GONE)
    (database.path / "embeddings/.00009.npy.1.tmp").write_bytes(database.embeddings(rows).tobytes())
    assert {"tokens-3/tokens.partial.npy", "index/.index.faiss.1.tmp"} <= holding(database.path, wanted).keys()
    database.remove(rows)
    compact(database.path)
    assert holding(database.path, wanted) == {}


def test_a_second_call_completes_one_that_was_killed(database: RetrievalDatabase) -> None:
    """Killed behind the new card: the files that are derived from removed rows are still there, and no mark is."""
    rows = gone(database)
    wanted = traces(database, rows)
    derived = {name: data for name, data in contents(database.path).items() if name.split("/")[0] in FOLDERS[2:]}
    derived[FILE] = (database.path / FILE).read_bytes()
    database.remove(rows)
    compact(database.path)
    for name, data in derived.items():
        (database.path / name).parent.mkdir(exist_ok=True)
        (database.path / name).write_bytes(data)
    assert holding(database.path, wanted)
    compact(database.path)
    assert holding(database.path, wanted) == {}


def test_what_is_of_the_present_rows_is_kept(database: RetrievalDatabase) -> None:
    """Without removed rows, nothing but the list of duplicates goes, and no file of a user does."""
    (database.path / "notes").mkdir()
    np.save(database.path / "notes/mine.npy", np.arange(3))
    (database.path / "notes/mine.json").write_text(json.dumps({"database": "other"}))
    before = contents(database.path)
    compact(database.path)
    assert contents(database.path) == {name: data for name, data in before.items() if name != FILE}


def test_files_of_another_database_are_left_alone(database: RetrievalDatabase, tmp_path: Path) -> None:
    """A merged database reads the added pictures of its parts where they are."""
    other = build_database(tmp_path / "other", database.sources[1]["source"], ProjectionEmbedder(), **QUIET)
    add_pictures(other.path, [NewPicture(picture(30), "CC0-1.0", "A. Uthor")], ProjectionEmbedder())
    merged = merge_databases([database.path, other.path], tmp_path / "both")
    add_pictures(merged.path, [NewPicture(picture(31), "CC0-1.0", "A. Uthor")], ProjectionEmbedder())
    before = {path: contents(path) for path in (database.path, other.path)}
    grown = RetrievalDatabase.open(merged.path)
    grown.remove([0, *gone(grown)])
    compacted = compact(merged.path)
    assert {path: contents(path) for path in before} == before
    added = find_rows(compacted, licences=["CC0-1.0"])
    for row, seed in zip(added, (30, 31), strict=True):
        np.testing.assert_array_equal(compacted.patches([row])[0], np.asarray(picture(seed)))


def test_a_database_that_was_moved_loses_its_added_pictures_as_well(
    database: RetrievalDatabase, tmp_path: Path
) -> None:
    wanted = traces(database, gone(database))
    moved = RetrievalDatabase.open(database.path.rename(tmp_path / "moved"))
    moved.remove(gone(moved))
    compact(moved.path)
    assert holding(moved.path, wanted) == {}
    file = sorted((moved.path / "added").glob("*.parquet"))
    assert [len(pq.read_table(each)) for each in file] == [2, 2] and all(map(file_hash, file))
