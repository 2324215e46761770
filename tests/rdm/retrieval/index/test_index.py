from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from pictures import ProjectionEmbedder, write_pictures

from benchmarks.synthetic import write_database
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.index.faiss_rows import FaissRows
from rdm.retrieval.index.tune import caption_vectors, held_out, measure

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> RetrievalDatabase:
    path = tmp_path_factory.mktemp("index")
    source = write_pictures(path / "pictures", 60)
    return build_database(path / "db", source, ProjectionEmbedder(), shard_rows=16, progress=False)


@pytest.fixture(scope="module")
def index(database: RetrievalDatabase) -> NeighbourIndex:
    return NeighbourIndex.open(database)


def queries(count: int = 9) -> np.ndarray:
    return 5 * np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)


def test_search_equals_brute_force(database: RetrievalDatabase, index: NeighbourIndex) -> None:
    asked, vectors = queries(), database.embeddings(np.arange(60))
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    cosine = (asked @ vectors.T) / lengths
    best = np.argsort(-cosine, axis=1)[:, :7]
    found = index.search(asked, 7)
    np.testing.assert_array_equal(found.rows, best)
    np.testing.assert_allclose(found.scores, np.take_along_axis(cosine, best, 1), atol=1e-5)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32


def test_length_of_a_query_and_its_batch_change_nothing(index: NeighbourIndex) -> None:
    together = index.search(queries(), 5)
    alone = [index.search(17 * query[None], 5) for query in queries()]
    np.testing.assert_array_equal(np.concatenate([one.rows for one in alone]), together.rows)
    np.testing.assert_allclose(np.concatenate([one.scores for one in alone]), together.scores, atol=1e-5)


def test_all_rows_but_no_more(index: NeighbourIndex) -> None:
    assert sorted(index.search(queries(1), 60).rows[0]) == list(range(60))
    for k in (0, 61):
        with pytest.raises(ValueError, match=f"k={k}.* 1 to 60"):
            index.search(queries(1), k)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (np.ones((2, 7), np.float32), r"\(2, 7\).*\(B, 8\)"),
        (np.ones(8, np.float32), r"\(8,\)"),
        (np.zeros((2, 8), np.float32), r"query 0 .*0\.0"),
        (np.full((1, 8), np.nan, np.float32), "query 0 .*nan"),
    ],
)
def test_wrong_queries_are_refused(index: NeighbourIndex, asked: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.search(asked, 3)


def test_the_card_says_what_was_measured(database: RetrievalDatabase, index: NeighbourIndex) -> None:
    card = json.loads((database.path / "index/index.json").read_text())
    assert card == index.card
    assert card["factory"] == "Flat"
    assert card["metric"] == "cosine"
    assert (card["rows"], card["dim"], card["database"]) == (60, 8, database.fingerprint)
    measured = {"recall@4": 1.0, "recall@20": 1.0, "queries": 60}
    assert card["recall"]["image"] == {**measured, "made_from": "rows, left out"}
    assert card["recall"]["text"] == {**measured, "made_from": "rows shifted like texts"}
    assert card["ms_per_query"].keys() == {"single", "batch of 256"}
    assert card["bytes"] == (database.path / "index/index.faiss").stat().st_size


def test_a_bad_index_measures_badly(database: RetrievalDatabase, index: NeighbourIndex) -> None:
    vectors = database.embeddings(np.arange(60))
    mirrored = faiss.IndexFlatIP(8)
    mirrored.add(vectors[::-1] / np.linalg.norm(vectors[::-1], axis=1, keepdims=True))
    bad = NeighbourIndex(database, FaissRows(mirrored), index.card, database.path)
    recall = measure(bad, held_out(bad, None, 60))["recall"]
    for kind in ("image", "text"):
        assert recall[kind]["recall@4"] < 0.4
        assert recall[kind]["recall@20"] < 0.6


def test_load_gives_the_same_search(database: RetrievalDatabase, index: NeighbourIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    loaded = NeighbourIndex.load(database, tmp_path)
    np.testing.assert_array_equal(loaded.search(queries(), 4).rows, index.search(queries(), 4).rows)
    file = tmp_path / "index.faiss"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"index\.faiss.*sha256 .* delete"):
        NeighbourIndex.load(database, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"index.*scripts/build_database\.py"):
        NeighbourIndex.load(database, tmp_path / "nothing")


@pytest.mark.usefixtures("index")
def test_an_index_of_another_database_is_refused(database: RetrievalDatabase, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "pictures", 5, seed=3)
    other = build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)
    with pytest.raises(ValueError, match="index.*delete") as caught:
        NeighbourIndex.load(other, database.path / "index")
    assert database.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    recall = NeighbourIndex.open(other).card["recall"]
    assert (recall["image"]["recall@4"], recall["text"]["recall@4"], recall["image"]["queries"]) == (1.0, 1.0, 5)


def test_open_builds_anew_what_is_asked_for_otherwise(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "pictures", 40)
    database = build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)
    file = tmp_path / "db/index/index.faiss"

    def opened(*args: str, **options: str) -> tuple[str, int, bool]:
        file.touch()
        before = file.stat().st_ino
        card = NeighbourIndex.open(database, *args, **options).card
        return card["factory"], card["ram"], file.stat().st_ino != before

    file.parent.mkdir()
    assert opened() == ("Flat", 2_000_000_000, True)
    assert opened() == ("Flat", 2_000_000_000, False)
    assert opened("Flat", ram="2GB") == ("Flat", 2_000_000_000, False)
    assert opened(ram="1GB") == ("Flat", 1_000_000_000, True)
    assert opened("HNSW8", ram="1GB") == ("HNSW8", 1_000_000_000, True)
    assert opened() == ("HNSW8", 1_000_000_000, False)

    write_pictures(tmp_path / "pictures", 41)
    more = build_database(tmp_path / "more", source, ProjectionEmbedder(), progress=False)
    (tmp_path / "db/index").rename(tmp_path / "more/index")
    with pytest.raises(ValueError, match="index.*delete"):
        NeighbourIndex.open(more)
    assert len(NeighbourIndex.open(more, replace=True)) == len(NeighbourIndex.open(more)) == 41


def test_a_killed_save_leaves_no_index_of_mixed_files(database: RetrievalDatabase, tmp_path: Path) -> None:
    index = NeighbourIndex.build(database, progress=False)
    index.save(tmp_path)
    (tmp_path / "index.faiss").unlink()
    (tmp_path / "index.faiss").mkdir()  # so that the new one cannot be put there
    with pytest.raises(OSError, match=r"index\.faiss"):
        index.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"index.*scripts/build_database\.py"):
        NeighbourIndex.load(database, tmp_path)


def test_captions_are_queries(database: RetrievalDatabase, tmp_path: Path) -> None:
    embedder, asked, captions = ProjectionEmbedder(), [], ["a cat", "a dog", "a cat", ""] * 15
    said = write_database(tmp_path / "db", lambda _: (database.embeddings(np.arange(60)), {"caption": captions}), 1, 8)

    def texts() -> np.ndarray:
        asked.append(caption_vectors(said, embedder))
        return asked[-1]

    assert NeighbourIndex.build(said, texts=texts, progress=False).card["factory"] == "Flat"
    assert not asked
    recall = NeighbourIndex.build(said, "HNSW8", texts=texts, progress=False).card["recall"]
    np.testing.assert_array_equal(asked[0], embedder.texts(["a cat", "a dog"]).numpy())
    assert (recall["text"]["made_from"], recall["image"]["made_from"]) == ("texts", "rows, left out")
    assert len(caption_vectors(database, embedder)) == 0


def test_factory_strings_are_checked(database: RetrievalDatabase) -> None:
    with pytest.raises(ValueError, match="'Flatt'"):
        NeighbourIndex.build(database, "Flatt")
    with pytest.raises(ValueError, match="IVF64.* 64 .* 60"):
        NeighbourIndex.build(database, "IVF64,Flat")
    with pytest.raises(ValueError, match="'IVF4,PQ4' on 60 rows"):
        NeighbourIndex.build(database, "IVF4,PQ4")


def test_faiss_is_loaded_only_for_searching() -> None:
    names = ("database.rows", "builder.build", "neighbours.build", "queries", "retriever", "index.search", "index.tune")
    imports = ", ".join(f"rdm.retrieval.{name}" for name in names)
    code = f"import sys, rdm, {imports}; print('faiss' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
