"""Databases of CompVis' code and of clip-retrieval become ours, row by row."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import ProjectionEmbedder, contents, write_large

from ldm.util import instantiate_from_config
from rdm.convert.nn_memory import read_nn_memory
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours.popularity import popularity, write_popularity
from rdm.retrieval.upkeep.compact import compact
from rdm.retrieval.upkeep.imports import import_database, numbered
from rdm.retrieval.upkeep.merge import merge_databases
from rdm.retrieval.upkeep.verify import verify

EMBEDDER = ProjectionEmbedder()


def write_parts(folder: Path, sizes: tuple[int, ...] = (7, 5)) -> dict[str, np.ndarray]:
    """Writes parts as CompVis' code does and returns what they hold together."""
    rng, folder = np.random.default_rng(5), folder
    folder.mkdir()
    parts = []
    for number, size in enumerate(sizes):
        corner = rng.integers(0, 500, (size, 2))
        part = {
            "embedding": rng.standard_normal((size, 8)).astype(np.float32),
            "img_id": rng.integers(0, 100, size),
            "patch_coords": np.concatenate([corner, corner + 256], axis=1),
        }
        np.savez_compressed(folder / f"{size}x8-part_{9 + number}.npz", **part)
        parts.append(part)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def test_parts_become_rows_in_their_order(tmp_path: Path) -> None:
    held = write_parts(tmp_path / "parts")
    assert [file.name for file in numbered((tmp_path / "parts").glob("*"))] == ["7x8-part_9.npz", "5x8-part_10.npz"]
    database = import_database([tmp_path / "parts"], tmp_path / "db", EMBEDDER, shard_rows=3, progress=False)
    assert [shard["rows"] for shard in database.card["shards"]] == [3, 3, 1, 3, 2]
    np.testing.assert_array_equal(database.embeddings(np.arange(12)), held["embedding"].astype(np.float16))
    for row, entry in enumerate(database.metadata(np.arange(12))):
        assert (entry["image_id"], entry["item"]) == (str(held["img_id"][row]), held["img_id"][row])
        assert [entry[side] for side in ("x0", "y0", "x1", "y1")] == held["patch_coords"][row].tolist()
    assert database.values("uri", [6, 7]).tolist() == ["7x8-part_9.npz#6", "5x8-part_10.npz#0"]
    assert find_rows(database, sources=["5x8"]).tolist() == [7, 8, 9, 10, 11]
    assert NeighbourIndex.open(database).search(held["embedding"][4:5], 1).rows.tolist() == [[4]]
    assert len(list(verify(database))) == 2
    swapped = [tmp_path / "parts/5x8-part_10.npz", tmp_path / "parts/7x8-part_9.npz"]
    other = import_database(swapped, tmp_path / "swapped", EMBEDDER, progress=False)
    np.testing.assert_array_equal(other.embeddings([0]), database.embeddings([7]))
    with pytest.raises(ValueError, match="source of image '.*give its data set"):
        database.patches([0])


def test_imported_rows_are_cut_out_of_a_data_set_that_is_given(tmp_path: Path) -> None:
    images = instantiate_from_config(write_large(tmp_path / "pictures", [(40, 30), (60, 50)]))
    content = {"embedding": np.ones((2, 8), np.float32), "img_id": np.array([1, 0])}
    np.savez(tmp_path / "part.npz", **content, patch_coords=np.array([[3, 4, 11, 12], [30, 2, 38, 10]]))
    database = import_database([tmp_path / "part.npz"], tmp_path / "db", EMBEDDER, progress=False)
    from PIL import Image

    for patch, name, box in zip(
        database.patches([0, 1], images), ("001", "000"), ((3, 4, 11, 12), (30, 2, 38, 10)), strict=True
    ):
        np.testing.assert_array_equal(patch, np.asarray(Image.open(tmp_path / f"pictures/{name}.png").crop(box)))


def test_damaged_or_foreign_parts_are_one_line(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", (4000,))
    (part,) = (tmp_path / "parts").glob("*")
    data = part.read_bytes()

    def refused(match: str, embedder: Any = EMBEDDER) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            import_database([tmp_path / "parts"], tmp_path / "db", embedder, shard_rows=100, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["parts"]  # nothing is left of it

    part.write_bytes(data[: len(data) // 2])
    refused(r"part_9\.npz .*File is not a zip file")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    part.write_bytes(flipped)
    refused(r"part_9\.npz .*fetch it again")
    part.write_bytes(data)
    refused(r"shape \(4000, 8\), expected \(4000, 6\)", ProjectionEmbedder(dim=6))
    np.savez(
        part, embedding=np.ones((2, 8), np.float32), img_id=np.array(["a", {}], object), patch_coords=np.ones((2, 4))
    )
    refused("holds objects")
    np.savez(part, embedding=np.full((2, 8), 1e6, np.float32), img_id=np.array([1, 2]), patch_coords=np.ones((2, 4)))
    refused("image '1' .*1000000.*65504")
    np.savez(part, embedding=np.ones((2, 8), np.float32))
    refused("no item named 'img_id.npy'")
    part.unlink()
    refused(r"\.npz.*img_emb.*parts")


def write_clip_retrieval(folder: Path, dtype: Any = np.float16) -> np.ndarray:
    """Writes a folder as clip-retrieval does and returns its vectors."""
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((9, 8)).astype(dtype)
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for number, part in enumerate((slice(0, 4), slice(4, 9))):
        numbers = range(9)[part]
        table = {
            "exif": [{"a": 1, "b": "ZZZ"}] * len(numbers),
            "image_path": [f"{row:05d}.jpg" for row in numbers],
            "caption": [f"picture {row}" for row in numbers],
            "url": [f"https://example.org/{number}/{row}" for row in numbers],
            "license": ["CC0" if row % 2 else None for row in numbers],
            "sha256": ["of a file"] * len(numbers),
            "width": list(numbers),
        }
        np.save(folder / f"img_emb/img_emb_{number + 9}.npy", vectors[part])
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{number + 9}.parquet")
    return vectors


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_clip_retrievals_folder_is_read_in_place(tmp_path: Path, dtype: Any) -> None:
    vectors = write_clip_retrieval(tmp_path / "theirs", dtype)
    before = contents(tmp_path / "theirs")
    database = import_database([tmp_path / "theirs"], tmp_path / "db", EMBEDDER, progress=False)
    assert set(contents(tmp_path / "db")) == {"database.json"}
    np.testing.assert_array_equal(database.embeddings(np.arange(9)), vectors.astype(np.float32))
    entry = database.metadata([5])[0]
    assert {key: entry[key] for key in ("image_id", "caption", "uri", "licence", "sha256", "item", "width")} == {
        "image_id": "00005.jpg",
        "caption": "picture 5",
        "uri": "https://example.org/1/5",
        "licence": "CC0",
        "sha256": "",
        "item": -1,
        "width": "5",
    }
    assert "exif" not in entry and database.values("licence", [4]).tolist() == [""]
    index = NeighbourIndex.open(database)
    np.testing.assert_array_equal(index.search(vectors.astype(np.float32), 1).rows[:, 0], np.arange(9))
    with pytest.raises(ValueError, match="'exif'.*image_id"):
        find_rows(database, where={"exif": ["1"]})
    assert find_rows(database, where={"width": ["7"]}).tolist() == [7]
    assert find_rows(database, licences=[""]).tolist() == [0, 2, 4, 6, 8]
    assert database.remove(find_rows(database, licences=["CC0"], sources=["https://example.org/0/0"])) == 5
    assert len(list(verify(database))) == 2
    write_parts(tmp_path / "parts")
    other = import_database([tmp_path / "parts"], tmp_path / "db2", EMBEDDER, progress=False)
    merged = merge_databases([database.path, other.path], tmp_path / "both")
    np.testing.assert_array_equal(merged.embeddings(np.arange(9, 21)), other.embeddings(np.arange(12)))
    compacted = compact(merged.path)
    np.testing.assert_array_equal(compacted.embeddings(np.arange(4)), vectors[[2, 4, 6, 8]].astype(np.float16))
    assert compacted.values("caption", [0, 3, 4]).tolist() == ["picture 2", "picture 8", ""]
    assert contents(tmp_path / "theirs") == before
    (tmp_path / "theirs/metadata/metadata_9.parquet").unlink()
    with pytest.raises(ValueError, match="2 .*img_emb.* 1 .*metadata"):
        import_database([tmp_path / "theirs"], tmp_path / "again", EMBEDDER, progress=False)


def test_imported_popularity_is_theirs(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts")
    database = import_database([tmp_path / "parts"], tmp_path / "db", EMBEDDER, progress=False)
    with pytest.raises(FileNotFoundError, match=r"neighbours.*scripts/search_neighbors\.py"):
        popularity(database, 4)
    counts = Counter({3: 9, 11: 4, 0: 1})
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        held = {"nn_memory": np.array([3, 11, 0]), "id_count": dict(counts) if protocol == 2 else counts}
        written = pickle.dumps(held, protocol)
        written = written.replace(b"numpy._core", b"numpy.core") if protocol == 2 else written  # as before numpy 2
        (tmp_path / "memory.p").write_bytes(written)
        rows, numbers = read_nn_memory(tmp_path / "memory.p")
        assert (rows.tolist(), numbers.tolist()) == ([3, 11, 0], [9, 4, 1])
    write_popularity(database, rows, numbers, "memory.p")
    assert popularity(database, 4).tolist() == [1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 4]
    database.remove([3])
    assert popularity(RetrievalDatabase.open(database.path), 4).tolist() == [1, *[0] * 10, 4]
    with pytest.raises(ValueError, match=r"memory\.p .* 0 to 12.* 12; import"):
        write_popularity(database, np.array([0, 12]), np.array([1, 1]), "memory.p")
    compact(database.path)
    with pytest.raises(ValueError, match=r"popularity\.npy.* fingerprint .*; import"):
        popularity(RetrievalDatabase.open(database.path), 4)


class Evil:
    """Would make a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "memory.p"
    file.write_bytes(pickle.dumps({"nn_memory": Evil(tmp_path / "ran"), "id_count": {}}))
    with pytest.raises(ValueError, match=r"memory\.p was refused: it asks for .*, which could run code; nothing of it"):
        read_nn_memory(file)
    assert not (tmp_path / "ran").exists()
    good = pickle.dumps({"nn_memory": np.array([3]), "id_count": {3: 1}})
    for content in (
        b"",
        b"not a pickle",
        good[:-9],
        pickle.dumps([1]),
        pickle.dumps({"nn_memory": [1], "id_count": {}}),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"memory\.p (is no complete nn_memory|was refused)"):
            read_nn_memory(file)
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_nn_memory(tmp_path / "nothing.p")
