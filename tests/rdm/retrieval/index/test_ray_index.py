"""An index in parts on a Ray cluster: one whose process is killed, what it writes, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from pictures import QUIET, ProjectionEmbedder, write_pictures

from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.index.ray_index import RayIndex
from rdm.retrieval.upkeep.verify import verify

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    return build_database(tmp_path / "db", write_pictures(tmp_path / "pictures", 30), ProjectionEmbedder(), **QUIET)


def queries() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)


def test_parts_find_what_one_index_finds_and_a_killed_one_is_read_again(database: RetrievalDatabase) -> None:
    one = NeighbourIndex.build(database, progress=False).search(queries(), 7)
    index = NeighbourIndex.open(database, "ray:4", progress=False)
    assert isinstance(index, RayIndex)
    assert sorted(file.name for file in (database.path / "index").glob("part*")) == [
        f"part-000{number}.faiss" for number in range(4)
    ]
    assert (index.search(queries(), 7).rows == one.rows).all()
    pid = ray.get(index._parts[2].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    assert (index.search(queries(), 7).rows == one.rows).all()
    again = NeighbourIndex.open(database)  # of the same kind, from its files
    assert isinstance(again, RayIndex) and (again.search(queries(), 7).rows == one.rows).all()
    np.testing.assert_allclose(again.search(queries(), 7).scores, one.scores, atol=1e-6)


def test_damaged_and_missing_parts_are_named(database: RetrievalDatabase) -> None:
    NeighbourIndex.open(database, "ray:2", progress=False)
    assert any("ray:2 over 30 rows" in line for line in verify(database))
    file = database.path / "index/part-0001.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-0001\.faiss.*build the index again"):
        NeighbourIndex.open(database)
    file.unlink()
    with pytest.raises((ValueError, OSError), match=r"part-0001\.faiss"):
        NeighbourIndex.open(database)
    card = json.loads((database.path / "index/index.json").read_text())
    (database.path / "index/index.json").write_text(json.dumps({**card, "parts": [{"sha256": 1}, 2]}))
    with pytest.raises(ValueError, match=r"index\.json: got parts without checksums, expected 2"):
        NeighbourIndex.open(database)


def test_another_kind_of_index_leaves_no_file_of_the_one_before(database: RetrievalDatabase) -> None:
    for factory, files in (("ray:2", 2), ("Flat", 1), ("ray:3", 3)):
        NeighbourIndex.open(database, factory, progress=False)
        assert len(list((database.path / "index").glob("*.faiss"))) == files


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("ray:", "expected ray:PARTS or ray:PARTS:FACTORY"),
        ("ray:many", "got 'ray:many'"),
        ("ray:31", "got 31 parts for 30 rows"),
        ("ray:2:Nonsense", "faiss knows no index 'Nonsense'"),
        ("ray:2:IVF16,Flat", "has 16 lists and needs as many rows, got 15"),
    ],
)
def test_what_cannot_be_is_one_line(factory: str, message: str, database: RetrievalDatabase) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        NeighbourIndex.open(database, factory, progress=False)
    assert "\n" not in str(caught.value)
