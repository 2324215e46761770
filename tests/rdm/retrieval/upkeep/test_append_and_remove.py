"""Databases that change: rows removed, appended, merged, rewritten."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import QUIET, ProjectionEmbedder, contents, write_pictures
from PIL import Image

from ldm.util import instantiate_from_config
from rdm.data import QueryDataset
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours.build import build_neighbour_table
from rdm.retrieval.neighbours.popularity import popularity
from rdm.retrieval.queries import popular_rows
from rdm.retrieval.retriever import Retriever
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.retrieval.upkeep.append import append_pictures
from rdm.retrieval.upkeep.compact import compact
from rdm.retrieval.upkeep.merge import merge_databases

ROOT = Path(__file__).parents[4]


def test_removed_rows_are_marked_and_keep_their_numbers(database: RetrievalDatabase) -> None:
    before, fingerprint = database.embeddings(np.arange(19)), database.fingerprint
    other = RetrievalDatabase.open(database.path)  # stands for another process
    assert database.is_alive().all() and database.removed == 0 and other.living_count == 19
    assert database.remove([18, 3, 3]) == 2
    assert database.remove(np.array([[3], [8]])) == 1
    for opened in (database, other, RetrievalDatabase.open(database.path)):
        assert np.flatnonzero(~opened.is_alive()).tolist() == [3, 8, 18]
        assert opened.is_alive(np.array([[3, 4], [18, 0]])).tolist() == [[False, True], [False, True]]
        assert opened.living_rows().tolist() == sorted(set(range(19)) - {3, 8, 18}) and opened.living_count == 16
        assert (opened.removed, len(opened), opened.fingerprint) == (3, 19, fingerprint)
        np.testing.assert_array_equal(opened.embeddings(np.arange(19)), before)
    with pytest.raises(ValueError, match="19 to 19.* 0 to 18"):
        database.remove([19])
    database.verify()


def test_a_damaged_file_of_removed_rows_is_never_ignored(database: RetrievalDatabase) -> None:
    database.remove([3, 12])
    file = database.path / "removed.npz"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"removed\.npz.*restore it"):
        database.is_alive()
    with file.open("wb") as stream:
        np.savez(stream, **{"00002": np.array([3], np.int32)})
    with pytest.raises(ValueError, match=r"removed\.npz.* row 3 .*00002"):
        RetrievalDatabase.open(database.path).is_alive()


def everything(database: RetrievalDatabase) -> list[tuple[Any, ...]]:
    """Each row that is there: its facts and its vector."""
    rows = database.living_rows()
    facts = [tuple(sorted(entry.items())) for entry in database.metadata(rows)]
    return list(zip(facts, map(bytes, database.embeddings(rows)), strict=True))


class Counting(ProjectionEmbedder):
    """Counts the pictures it embeds."""

    seen = 0

    def images(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return super().images(images)


def test_new_pictures_are_appended_and_old_ones_not_embedded_again(
    tmp_path: Path, source: dict[str, Any], database: RetrievalDatabase
) -> None:
    before = everything(database)
    assert append_pictures(database.path, source, Counting(), **QUIET).fingerprint == database.fingerprint
    Image.new("RGB", (8, 8), "red").save(Path(source["params"]["root"]) / "class0/001.png")  # sorts in between
    write_pictures(tmp_path / "more", 5, seed=9)
    embedder = Counting()
    grown = append_pictures(database.path, source, embedder, **QUIET)
    assert (embedder.seen, len(grown), grown.fingerprint == database.fingerprint) == (1, 20, False)
    other = {**source, "params": {**source["params"], "root": str(tmp_path / "more")}}
    grown = append_pictures(database.path, other, embedder, **QUIET)  # ids of pictures that another source has
    assert (embedder.seen, len(grown), len(grown.sources)) == (6, 25, 3)
    assert everything(grown)[:19] == before
    assert grown.sources_of([0, 18, 19, 24]).tolist() == [0, 0, 1, 2]
    red, more = grown.patches([19, 20])
    assert (red == [255, 0, 0]).all()
    np.testing.assert_array_equal(more, np.asarray(Image.open(tmp_path / "more/class0/000.png")))
    np.testing.assert_array_equal(grown.patches([18])[0], database.patches([18])[0])
    grown.verify()
    with pytest.raises(ValueError, match="embedder .*fingerprint.*; delete"):
        append_pictures(database.path, other, ProjectionEmbedder(seed=1), **QUIET)
    with pytest.raises(FileNotFoundError, match="no finished database"):
        append_pictures(tmp_path / "nothing", source, embedder, **QUIET)


def test_pictures_that_cannot_be_read_append_nothing(source: dict[str, Any], database: RetrievalDatabase) -> None:
    (Path(source["params"]["root"]) / "class0/001.png").write_bytes(b"not a picture")
    assert append_pictures(database.path, source, ProjectionEmbedder(), **QUIET).fingerprint == database.fingerprint
    assert not (database.path / "append.json").exists()


def test_rows_are_found_by_what_is_known_of_them(tmp_path: Path) -> None:
    def picture(color: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(buffer, "PNG")
        return buffer.getvalue()

    for name, licence in (("a", "CC0"), ("ab", "MIT")):
        colors = ["red", "green", "blue"]
        columns = {"image": [{"bytes": picture(color)} for color in colors], "license": [licence, licence, "X"]}
        pq.write_table(pa.table({**columns, "style": colors}), tmp_path / f"{name}.parquet")
    source = {"target": "ldm.data.ParquetImages", "params": {"files": str(tmp_path), "size": 8}}
    database = build_database(tmp_path / "db", source, ProjectionEmbedder(), **{**QUIET, "shard_rows": 2})
    folder = build_database(tmp_path / "db2", write_pictures(tmp_path / "more", 2), ProjectionEmbedder(), **QUIET)
    merged = merge_databases([database.path, folder.path], tmp_path / "both")

    def found(**rules: Any) -> list[int]:
        return find_rows(merged, **rules).tolist()

    assert found(licences=["CC0"]) == [0, 1]
    assert found(licences=["X", "MIT"]) == [2, 3, 4, 5]
    assert found(sources=["a.parquet"]) == [0, 1, 2]
    assert found(sources=["a"]) == [0, 1, 2, 3, 4, 5]
    assert found(ids=["ab/1", "class1/001.png"], licences=["CC0"]) == [0, 1, 4, 7]
    assert found(where={"style": ["blue", "red"]}) == [0, 2, 3, 5]
    assert found(where={"style": [""], "item": ["5"]}) == [5, 6, 7]  # the folder's pictures have no style
    assert found(ids=["nobody"]) == found() == []
    with pytest.raises(ValueError, match="'stile'.*image_id, .*, style"):
        find_rows(merged, where={"stile": ["blue"]})


def test_after_an_opt_out_nothing_gives_the_pictures_any_more(tmp_path: Path) -> None:
    source, embedder = write_pictures(tmp_path / "pictures", 60), ProjectionEmbedder()
    database = build_database(tmp_path / "db", source, embedder, **QUIET)
    index, images = NeighbourIndex.open(database), instantiate_from_config(source)
    table = database.path / "neighbours/train"
    build_neighbour_table(table, images, embedder, database, index, k=50, progress=False)
    retriever, generator = Retriever(lambda: embedder, database, lambda: index), np.random.default_rng(0)
    queries = torch.from_numpy(database.embeddings(np.arange(60)))
    gone = find_rows(database, sources=[str(tmp_path / "pictures/class1")])
    assert len(gone) == 30 and np.isin(gone, retriever(queries, 4).rows).any() and popularity(database, 4)[gone].any()
    RetrievalDatabase.open(database.path).remove(gone)  # by another process, while this one goes on
    assert not np.isin(retriever(queries, 30).rows, gone).any()
    assert not np.isin(retriever(queries, 4, pool=30, generator=generator).rows, gone).any()
    drawn = popular_rows(popularity(database, 4), 500, generator=generator, top_m=1.0)
    assert popularity(database, 4).sum() == 240 and not np.isin(drawn, gone).any()
    dataset = QueryDataset(images, database, str(table), k=4)
    assert not np.isin([dataset[number]["neighbour_rows"].numpy() for number in range(60)], gone).any()


def test_compact_leaves_the_rows_that_are_there(source: dict[str, Any], database: RetrievalDatabase) -> None:
    other = RetrievalDatabase.open(database.path)  # stands for another process
    database.remove([1, *range(8, 16), 18])
    left = everything(database)
    compacted = compact(database.path)
    assert (len(compacted), compacted.removed, everything(compacted)) == (9, 0, left)
    assert [shard["rows"] for shard in compacted.card["shards"]] == [7, 2]
    files = {path.relative_to(database.path).as_posix() for path in database.path.rglob("*") if path.is_file()}
    shards = {f"{kind}/{name}" for name in ("00003", "00004") for kind in ("embeddings", "metadata")}
    assert {file.rpartition(".")[0] for file in files} == {"database", *shards}
    compacted.verify()
    with pytest.raises(ValueError, match="open it again"):
        other.is_alive()
    with pytest.raises(ValueError, match="open it again"):
        other.remove([2])
    again = append_pictures(database.path, source, ProjectionEmbedder(), **QUIET)
    assert len(again) == 19 and everything(again)[:9] == left
    again.remove(np.arange(19))
    with pytest.raises(ValueError, match="removed; delete the folder"):
        compact(database.path)


def test_merged_rows_are_those_of_the_parts(tmp_path: Path, database: RetrievalDatabase) -> None:
    write_pictures(tmp_path / "more", 5, seed=9)
    source = {"target": "ldm.data.ImageFolder", "params": {"root": str(tmp_path / "more"), "size": 8}}
    other = build_database(tmp_path / "db2", source, ProjectionEmbedder(), **QUIET)
    database.remove([0, 18])
    merged = merge_databases([database.path, other.path], tmp_path / "both")
    assert len(merged) == 24 and merged.removed == 2
    assert everything(merged) == everything(database) + everything(other)
    patches = [*database.patches([1, 17]), *other.patches([3])]
    np.testing.assert_array_equal(merged.patches([1, 17, 22]), patches)
    merged.verify()
    whole, before = everything(merged), contents(merged.path)
    again = merge_databases([database.path, other.path], merged.path)  # as if the first one was killed at its end
    assert contents(merged.path) == before and everything(again) == whole
    database.remove([1])
    with pytest.raises(ValueError, match="both.*name another path"):
        merge_databases([database.path, other.path], merged.path)
    left = everything(compact(merged.path))
    assert left == whole and len(left) == 22  # the files of the parts stay as they were
    foreign = build_database(tmp_path / "db3", source, ProjectionEmbedder(seed=1), **QUIET)
    with pytest.raises(ValueError, match="projection-0 .*projection-1"):
        merge_databases([database.path, foreign.path], tmp_path / "never")
    with pytest.raises(ValueError, match="both.*name another path"):
        merge_databases([database.path, other.path], merged.path)
    with pytest.raises(ValueError, match="1 databases.* 2"):
        merge_databases([database.path], tmp_path / "never")
    assert not (tmp_path / "never").exists()


ORDER = ("remove", "merge", "compact", "append")
KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pictures import ProjectionEmbedder
from rdm.retrieval.database.rows import RetrievalDatabase
from PIL import Image
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.retrieval.upkeep.append import append_pictures
from rdm.retrieval.upkeep.compact import compact
from rdm.retrieval.upkeep.merge import merge_databases

def run(action):
    if action == "append":
        append_pictures({path!r}, {source!r}, ProjectionEmbedder(), batch_size=4, shard_rows=8, progress=False)
    elif action.startswith("add"):
        new = [NewPicture(Image.new("RGB", (9, 8), each), "CC0-1.0", "A. Uthor") for each in (action[3:], "white")]
        add_pictures({path!r}, new, ProjectionEmbedder())
    elif action == "compact":
        compact({path!r})
    elif action == "remove":
        RetrievalDatabase.open({path!r}).remove([3, 12])
    else:
        merge_databases([{path!r}, {path!r}], {path!r} + "-both")

def die_at(step):
    def count(event, arguments):
        nonlocal step
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR) and {path!r} in str(arguments[0])
        if writes or event in ("os.rename", "os.remove", "os.link"):
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

for word in sys.argv[1:]:
    action, first, stride = word.split(":")
    for step in range(int(first), 1000, int(stride)):
        child = os.fork()
        if child == 0:
            die_at(step)
            run(action)
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
        database = RetrievalDatabase.open({path!r})
        database.verify()
        print(action, len(database), database.removed, flush=True)
"""


def kill(path: Path, source: dict[str, Any], *words: str) -> list[tuple[str, int, int]]:
    """Kills actions at moments when a file is made, renamed or deleted.

    Args:
        path: of the database.
        source: what is appended.
        words: ``append:9:4`` appends and is killed at the file number 9, then 13, ... until it gets through.

    Returns:
        The action, and rows and removed rows of the database, after each kill.
    """
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(path), source=source)
    command = [sys.executable, "-c", code, *words]
    said = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True).stdout
    lines = [line.split() for line in said.splitlines()]
    return [(action, int(rows), int(removed)) for action, rows, removed in lines]


def test_whenever_it_is_killed_the_database_is_as_before_or_as_wanted(
    source: dict[str, Any], database: RetrievalDatabase
) -> None:
    before = everything(database)
    states = kill(database.path, source, "remove:0:1", "merge:0:4", "compact:0:1", "append:0:3")
    assert [action for action, *_ in states] == sorted([action for action, *_ in states], key=ORDER.index)
    found = {action: [state for name, *state in states if name == action] for action in ORDER}
    assert all(state in ([19, 0], [19, 2]) for state in found["remove"])
    assert all(state == [19, 2] for state in found["merge"])
    assert all(state in ([19, 2], [17, 0]) for state in found["compact"])
    assert all(state in ([17, 0], [19, 0]) for state in found["append"])
    assert [len(found[action]) >= least for action, least in zip(ORDER, (2, 3, 6, 3), strict=True)] == [True] * 4
    left = [row for number, row in enumerate(before) if number not in (3, 12)]
    merged = RetrievalDatabase.open(f"{database.path}-both")
    assert len(merged) == 38 and everything(merged) == left + left
    appended = RetrievalDatabase.open(database.path)
    assert everything(appended) == [*left, before[3], before[12]]  # whose pictures the source still has


def test_whenever_adding_is_killed_the_pictures_are_there_with_their_rows_or_not_at_all(
    database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    before = everything(database)
    states = kill(database.path, source, "addred:0:1")
    assert len(states) > 8 and {tuple(state) for _, *state in states} <= {(19, 0), (21, 0)}
    grown = RetrievalDatabase.open(database.path)
    assert len(grown) == 21 and everything(grown)[:19] == before
    assert [patch[0, 0].tolist() for patch in grown.patches([19, 20])] == [[255, 0, 0], [255, 255, 255]]
    files = {file.name for file in (database.path / "added").iterdir()}
    assert files == {Path(grown.sources[-1]["source"]["params"]["files"]).name}
    with pytest.raises(ValueError, match="picture 1 has the pixels of row 20"):
        add_pictures(database.path, [NewPicture(Image.new("RGB", (8, 8), "white"), "MIT", "X")], ProjectionEmbedder())
    assert not (database.path / "append.json").exists()


def test_a_killed_append_continues_to_the_same_bytes(
    tmp_path: Path, source: dict[str, Any], database: RetrievalDatabase
) -> None:
    write_pictures(tmp_path / "pictures", 40)
    shutil.copytree(database.path, tmp_path / "undisturbed")
    append_pictures(tmp_path / "undisturbed", source, ProjectionEmbedder(), **QUIET)
    once = 1000
    states = kill(database.path, source, f"append:12:{once}", f"append:9:{once}")  # in its second and its third shard
    assert states == [("append", 19, 0)] * 2
    embedder = Counting()
    append_pictures(database.path, source, embedder, **QUIET)
    assert embedder.seen == 5
    assert contents(database.path) == contents(tmp_path / "undisturbed")
