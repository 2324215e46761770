from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import Space, write_database
from rdm.retrieval.index.exact import RowReader, cosine, mapped_bytes, search_exactly, unit_vectors


def test_rows_and_similarities_are_those_of_brute_force(tmp_path: Path) -> None:
    vectors = Space(16).images(0, 900)[0].astype(np.float16)
    database = write_database(tmp_path / "db", lambda n: (vectors[n * 400 : (n + 1) * 400], {}), 3, 16)
    queries = unit_vectors(Space(16).queries("text", 20), "query")
    truth = queries.astype(float) @ vectors.T.astype(float) / np.linalg.norm(vectors.astype(float), axis=1)
    reader, some = RowReader(database), np.arange(3, 900, 7)
    for rows, among in ((None, np.arange(900)), (some, some)):
        found, order = search_exactly(reader, queries, 9, rows), np.argsort(-truth[:, among], axis=1)[:, :9]
        np.testing.assert_array_equal(found.rows, among[order])
        np.testing.assert_allclose(found.scores, np.take_along_axis(truth[:, among], order, 1), atol=1e-6)
    assert search_exactly(reader, queries, 9, some[:4]).rows.shape == (20, 4)
    asked = np.random.default_rng(0).integers(-1, 900, (20, 30))
    expected = np.where(asked < 0, -np.inf, np.take_along_axis(truth, np.maximum(asked, 0), 1))
    np.testing.assert_allclose(cosine(reader, queries, asked), expected, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is mapped")
def test_reading_rows_keeps_few_pages_mapped(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((16384, 512)).astype(np.float16)
    database = write_database(tmp_path / "db", lambda n: (vectors[n * 4096 : (n + 1) * 4096], {}), 4, 512)  # 16 MB
    rows = np.sort(np.random.default_rng(1).integers(0, 16384, (64, 200)), axis=1)

    def mapped(bound: int | None) -> int:
        reader, before = RowReader(database, bound), mapped_bytes()
        for some in rows:
            np.testing.assert_array_equal(reader(some), vectors[some])
        return mapped_bytes() - before

    assert mapped(None) > 12_000_000
    assert mapped(4_000_000) < 6_000_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is mapped")
def test_reading_all_rows_lets_go_of_the_shards_that_are_read(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((16384, 512)).astype(np.float16)
    database = write_database(tmp_path / "db", lambda n: (vectors[n * 2048 : (n + 1) * 2048], {}), 8, 512)  # 16 MB
    before, start = mapped_bytes(), 0
    for block in database.blocks(1000):
        np.testing.assert_array_equal(block, vectors[start : start + 1000])
        start += len(block)
        assert mapped_bytes() - before < 6_000_000
    assert start == 16384
