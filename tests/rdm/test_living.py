"""Databases that change: rows removed, appended, merged, rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import ProjectionEmbedder, write_pictures

from rdm.retrieval.builder import build_database
from rdm.retrieval.database import RetrievalDatabase

QUIET = {"batch_size": 4, "shard_rows": 8, "progress": False}


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    return write_pictures(tmp_path / "pictures", 19)


@pytest.fixture
def database(tmp_path: Path, source: dict[str, Any]) -> RetrievalDatabase:
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)


def test_removed_rows_are_marked_and_keep_their_numbers(database: RetrievalDatabase) -> None:
    before, fingerprint = database.embeddings(np.arange(19)), database.fingerprint
    other = RetrievalDatabase.open(database.path)  # stands for another process
    assert database.alive is None and database.removed == 0 and other.alive is None
    assert database.remove([18, 3, 3]) == 2
    assert database.remove(np.array([[3], [8]])) == 1
    for opened in (database, other, RetrievalDatabase.open(database.path)):
        assert opened.alive is not None and opened.alive is opened.alive
        assert np.flatnonzero(~opened.alive).tolist() == [3, 8, 18]
        assert (opened.removed, len(opened), opened.fingerprint) == (3, 19, fingerprint)
        np.testing.assert_array_equal(opened.embeddings(np.arange(19)), before)
    with pytest.raises(ValueError, match="got rows from 19 to 19, expected 0 to 18"):
        database.remove([19])
    database.verify()


def test_a_damaged_file_of_removed_rows_is_never_ignored(database: RetrievalDatabase) -> None:
    database.remove([3, 12])
    file = database.path / "removed.npz"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"removed\.npz is damaged .* restore it"):
        _ = database.alive
    with file.open("wb") as stream:
        np.savez(stream, **{"00002": np.array([3], np.int32)})
    with pytest.raises(ValueError, match="names row 3 of shard 00002, which has 3"):
        _ = RetrievalDatabase.open(database.path).alive
