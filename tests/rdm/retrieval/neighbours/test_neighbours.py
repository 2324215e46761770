from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import ProjectionEmbedder, contents, write_pictures
from PIL import Image

from ldm.util import instantiate_from_config
from rdm.data import QueryDataset
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours import build as module
from rdm.retrieval.neighbours.build import build_neighbour_table, prepare_neighbour_table
from rdm.retrieval.neighbours.table import NeighbourTable


class Counting(ProjectionEmbedder):
    """Counts the pictures it embeds; stops after `limit`."""

    seen, limit = 0, 10**9

    def images(self, images: torch.Tensor) -> torch.Tensor:
        if self.seen + len(images) > self.limit:
            raise KeyboardInterrupt
        self.seen += len(images)
        return super().images(images)


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:

    return write_pictures(tmp_path / "pictures", 30)


@pytest.fixture
def database(tmp_path: Path, source: dict[str, Any]) -> RetrievalDatabase:
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)


def build(database: RetrievalDatabase, images: Any, path: Path, embedder: Any = None, **options: Any) -> NeighbourTable:
    index = NeighbourIndex.open(database)
    return build_neighbour_table(
        path, images, embedder or ProjectionEmbedder(), database, index, progress=False, **options
    )


def nearest_others(vectors: np.ndarray, k: int, near_duplicate: float = 2.0) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    cosine[cosine >= near_duplicate] = -np.inf
    return np.argsort(-cosine, axis=1)[:, :k]


def test_neighbours_are_the_nearest_others(tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]) -> None:
    embedder = Counting()
    table = build(database, instantiate_from_config(source), tmp_path / "table", embedder, k=6)
    np.testing.assert_array_equal(table.rows, nearest_others(database.embeddings(np.arange(30)), 6))
    assert (table.rows.dtype, table.rows.shape, table.k, len(table)) == (np.int32, (30, 6), 6, 30)
    assert embedder.seen == 0  # all pictures are in the database, so none is embedded again
    assert table.card["database"] == database.fingerprint
    assert table.card["embedder"] == embedder.fingerprint
    assert table.card["leave_out"] == {"same_image_id": True, "near_duplicate": 0.999}


def test_near_duplicates_are_left_out(tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]) -> None:
    images = instantiate_from_config(source)
    exact = nearest_others(database.embeddings(np.arange(30)), 4, near_duplicate=0.6)
    assert (exact != nearest_others(database.embeddings(np.arange(30)), 4)).any()
    np.testing.assert_array_equal(build(database, images, tmp_path / "t", k=4, near_duplicate=0.6).rows, exact)


def test_a_copy_under_another_name_is_left_out(tmp_path: Path, source: dict[str, Any]) -> None:
    root = Path(source["params"]["root"])
    (root / "class9").mkdir()
    Image.open(root / "class0/000.png").save(root / "class9/copy.png")
    database = build_database(tmp_path / "db2", source, ProjectionEmbedder(), progress=False)
    table = build(database, instantiate_from_config(source), tmp_path / "table", k=29)
    names = database.column("image_id").to_pylist()
    first, copy = names.index("class0/000.png"), names.index("class9/copy.png")
    assert sorted(table.rows[first]) == sorted(set(range(31)) - {first, copy})
    with pytest.raises(
        ValueError,
        match=r"class0/000\.png' has 29 .*k=30",
    ):
        build(database, instantiate_from_config(source), tmp_path / "more", k=30)


def test_pictures_outside_the_database_are_embedded(tmp_path: Path, database: RetrievalDatabase) -> None:
    images = instantiate_from_config(write_pictures(tmp_path / "queries", 7, seed=5))
    embedder = Counting()
    table = build(database, images, tmp_path / "table", embedder, k=3)
    assert embedder.seen == 7
    vectors = embedder.images(torch.stack([images[i]["image"] for i in range(7)])).numpy()
    # the ids are those of database pictures, and rows of equal id are left out
    names = database.column("image_id").to_pylist()
    rows = database.embeddings(np.arange(30))
    cosine = vectors @ rows.T / np.linalg.norm(rows, axis=1)
    for number in range(7):
        cosine[number, names.index(images.metadata(number)["id"])] = -np.inf
    np.testing.assert_array_equal(table.rows, np.argsort(-cosine, axis=1)[:, :3])


def test_a_stopped_search_continues_to_the_same_bytes(
    tmp_path: Path, database: RetrievalDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 4)
    images = instantiate_from_config(write_pictures(tmp_path / "queries", 22, seed=5))
    build(database, images, tmp_path / "whole", k=3)
    stopped = Counting()
    stopped.limit = 11
    with pytest.raises(KeyboardInterrupt):
        build(database, images, tmp_path / "parts", stopped, k=3)
    with pytest.raises(FileNotFoundError, match=r"parts.*scripts/search_neighbors\.py"):
        NeighbourTable.open(tmp_path / "parts", database)
    rest = Counting()
    build(database, images, tmp_path / "parts", rest, k=3)
    assert (stopped.seen, rest.seen) == (8, 14)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    # One of another k, stopped at once, has overwritten what the first one's plan speaks of.
    for limit, k in ((11, 3), (0, 2)):
        stopped = Counting()
        stopped.limit = limit
        with pytest.raises(KeyboardInterrupt):
            build(database, images, tmp_path / "mixed", stopped, k=k)
    build(database, images, tmp_path / "mixed", k=3)
    assert contents(tmp_path / "mixed") == contents(tmp_path / "whole")


def test_popularity_counted_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "neighbours.npy", np.array([[2, 0, 4], [2, 4, 1], [0, 2, 4]], np.int32))
    six = build_database(
        tmp_path / "six", write_pictures(tmp_path / "pictures", 6), ProjectionEmbedder(), progress=False
    )
    table = NeighbourTable(tmp_path, {"k": 3, "database_rows": 6}, six)
    assert table.popularity(1).tolist() == [1, 0, 2, 0, 0, 0]
    assert table.popularity(2).tolist() == [2, 0, 3, 0, 1, 0]
    assert table.popularity(3).sum() == 9
    with pytest.raises(
        ValueError,
        match="3 neighbours.*k=4; rerun .* --k 4",
    ):
        table.popularity(4)
    six.remove([2])
    assert table.nearest(0, 2).tolist() == [0, 4] and table.nearest(1, 1).tolist() == [4]
    assert table.popularity(1).tolist() == [2, 0, 0, 0, 1, 0]
    assert table.popularity(2).tolist() == [2, 1, 0, 0, 3, 0]
    with pytest.raises(ValueError, match="2 of 3.*k=3; rerun"):
        table.nearest(0, 3)
    assert table.popularity(3).tolist() == [2, 1, 0, 0, 3, 0]  # of those that are left
    assert "3 of 3 pictures" in caplog.text


def test_removed_rows_are_nobodys_neighbours(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    images, index = instantiate_from_config(source), NeighbourIndex.open(database)
    table = build(database, images, tmp_path / "table", k=8)
    dataset = QueryDataset(images, database, table, k=3)
    worker = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    gone = dataset[4]["neighbour_rows"][:2].tolist()
    RetrievalDatabase.open(database.path).remove(gone)  # by another process
    for seen in (dataset, worker):
        rows = [seen[number]["neighbour_rows"].tolist() for number in range(30)]
        assert rows == [[row for row in line if row not in gone][:3] for line in table.rows.tolist()]
    assert table.popularity(3)[gone].tolist() == [0, 0] and table.popularity(3).sum() == 90
    assert not set(gone) & set(build(database, images, tmp_path / "after", k=8).rows.ravel().tolist())

    def prepare(used: int) -> Any:
        path, embedder = tmp_path / "table", ProjectionEmbedder()
        return prepare_neighbour_table(path, images, embedder, database, index, k=8, used=used, progress=False)

    assert prepare(3).rows.tolist() == table.rows.tolist()  # the stored ones are enough
    kept = prepare(8)
    assert not set(gone) & set(kept.rows.ravel().tolist()) and kept.left() == 8


@pytest.mark.parametrize("per_side", [2, 3])
def test_patches_of_a_picture_have_neighbours_of_their_own(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any], per_side: int
) -> None:
    images, side = instantiate_from_config(source), 8 // per_side
    table = build(database, images, tmp_path / "table", k=5, patches_per_side=per_side)
    assert table.rows.shape == (30, per_side**2, 5)
    number, row, column = 7, 1, per_side - 1
    patch = images[number]["image"][:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    query = ProjectionEmbedder().images(patch[None]).numpy()[0]
    rows = database.embeddings(np.arange(30))
    cosine = rows @ query / np.linalg.norm(rows, axis=1)
    cosine[number] = -np.inf
    np.testing.assert_array_equal(table.rows[number, row * per_side + column], np.argsort(-cosine)[:5])
    item = QueryDataset(images, database, table, k=2)[number]
    assert item["neighbour_rows"].tolist() == table.rows[number, :, :2].ravel().tolist()
    assert item["neighbours"].shape == (2 * per_side**2, 8)
    assert table.popularity(2).sum() == 30 * 2 * per_side**2
    with pytest.raises(ValueError, match="patches_per_side=9.* 1 to 8"):
        build(database, images, tmp_path / "more", k=5, patches_per_side=9)


def test_a_foreign_or_damaged_table_is_refused(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    images = instantiate_from_config(source)
    table = build(database, images, tmp_path / "table", k=3)
    assert len(pickle.dumps(table)) < 2000
    other = build_database(tmp_path / "o", source, ProjectionEmbedder(seed=1), progress=False)
    with pytest.raises(ValueError, match=f"{database.fingerprint}, got .*{other.fingerprint}"):
        NeighbourTable.open(table.path, other)
    with pytest.raises(
        ValueError, match=f"{ProjectionEmbedder(seed=1).fingerprint}.*{ProjectionEmbedder().fingerprint}"
    ):
        build(other, images, tmp_path / "wrong", k=3)
    with pytest.raises(ValueError, match=f"{database.fingerprint}.*{other.fingerprint}"):
        build_neighbour_table(
            tmp_path / "wrong", images, ProjectionEmbedder(seed=1), other, NeighbourIndex.open(database)
        )
    data = bytearray((table.path / "neighbours.npy").read_bytes())
    data[-2] ^= 1
    (table.path / "neighbours.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"neighbours\.npy.*sha256"):
        NeighbourTable.open(table.path, database)


def test_prepare_builds_again_only_what_differs(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    images, index = instantiate_from_config(source), NeighbourIndex.open(database)

    def prepare(images: Any, **options: Any) -> int:
        path = tmp_path / "table"
        prepare_neighbour_table(path, images, ProjectionEmbedder(), database, index, progress=False, **options)
        return (path / "neighbours.npy").stat().st_ino

    first = prepare(images, k=5)
    assert prepare(images, k=5) == first
    assert prepare(images, k=2) == first
    assert prepare(images, k=6) != first
    assert json.loads((tmp_path / "table/neighbours.json").read_text())["k"] == 6
    fewer = instantiate_from_config(write_pictures(tmp_path / "fewer", 3))
    prepare(fewer, k=6)
    assert len(NeighbourTable.open(tmp_path / "table", database)) == 3
