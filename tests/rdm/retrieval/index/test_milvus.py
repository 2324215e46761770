"""What is Milvus' own; the search itself is tested with that of every index, in test_search.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import Space, write_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.index.milvus_index import MilvusIndex

FACTORY = "milvus:rows.db"


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    return write_database(tmp_path / "db", lambda _: (Space(8).images(0, 50)[0], {}), 1, 8)


def test_what_is_not_installed_is_said(database: RetrievalDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ValueError, match=rf"'{FACTORY}'.*pymilvus.*pip install .*\[milvus\]'"):
        NeighbourIndex.open(database, FACTORY)


def test_the_database_opens_with_its_collection(database: RetrievalDatabase) -> None:
    for name in ("pymilvus", "milvus_lite"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[milvus]'")
    queries = Space(8).queries("image", 5)
    built = NeighbourIndex.open(database, FACTORY, progress=False)
    rows = built.search(queries, 3).rows
    built.client.close()
    again = NeighbourIndex.open(database)
    assert isinstance(again, MilvusIndex)
    np.testing.assert_array_equal(again.search(queries, 3).rows, rows)
    np.testing.assert_array_equal(rows, NeighbourIndex.build(database, "Flat", progress=False).search(queries, 3).rows)
    again.client.drop_collection(again.collection)
    again.client.close()
    with pytest.raises(ValueError, match=f"{FACTORY}.* 0 rows.* 50; delete"):
        NeighbourIndex.open(database)
    with pytest.raises(ConnectionError, match=r"milvus:http://127\.0\.0\.1:9"):
        NeighbourIndex.open(database, "milvus:http://127.0.0.1:9")
