"""What a database says of itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pictures import QUIET, ProjectionEmbedder
from toy import FLAGS

from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.summary import summary
from rdm.retrieval.index.faiss_index import NeighbourIndex


@pytest.fixture
def flags(tmp_path: Path) -> RetrievalDatabase:
    source = {"target": "ldm.data.ParquetImages", "params": FLAGS}
    return build_database(tmp_path / "flags", source, ProjectionEmbedder(), **QUIET)


def test_the_numbers_are_those_of_the_living_rows(flags: RetrievalDatabase) -> None:
    flags.remove(find_rows(flags, where={"style": ["noto"]})[:3])
    found, rows = summary(flags), flags.metadata(flags.living_rows())
    assert (found.rows, found.living, found.dim, found.embedder) == (40, 37, 8, "projection-0")
    assert found.licences == Counter(row["licence"] for row in rows)
    assert found.styles == Counter(row["style"] for row in rows) and found.styles["noto"] == 5
    assert found.sources == Counter(row["uri"].partition("#")[0] + "#" for row in rows)
    assert list(found.licences.values()) == sorted(found.licences.values(), reverse=True)
    assert found.index is None and found.bytes["index"] == 0
    short = summary(flags, counted=False)
    assert (short.living, short.licences, short.sources, short.styles) == (37, {}, {}, {})
    on_disk = [file.stat().st_size for file in flags.path.rglob("*") if file.is_file()]
    assert sum(found.bytes.values()) == sum(on_disk) and found.bytes["rows"] > 40 * 8 * 2


def test_the_lines_name_rows_licences_index_and_recall(flags: RetrievalDatabase) -> None:
    assert "index: none of these rows" in "\n".join(summary(flags).lines())
    NeighbourIndex.open(flags, progress=False)
    rows, licences, sources, styles, index, disk = summary(flags).lines()
    assert rows == "40 rows of 8 numbers, made by projection-0"
    assert "MIT 8" in licences and "noto.parquet# 8" in sources and "openmoji-line 8" in styles
    assert index.startswith("index: Flat (exact), recall@4 100.0% of images") and "ms per query" in index
    assert disk.startswith("disk: rows 0.0 MB, index 0.0 MB")


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("noto.parquet#12", "noto.parquet#"),
        ("pictures/cats/1.png", "pictures/cats/"),
        ("https://a.example/b/c.jpg", "https://a.example/"),
        ("s3://bucket/b#1", "s3://bucket/"),
        ("1.png", ""),
        ("", ""),
    ],
)
def test_the_source_of_a_row_is_the_beginning_of_its_uri(
    flags: RetrievalDatabase, monkeypatch: pytest.MonkeyPatch, uri: str, source: str
) -> None:
    cells = flags.cells

    def with_uri(number: int, name: str) -> pa.ChunkedArray:
        found = cells(number, name)
        return pa.chunked_array([[uri] * len(found)]) if name == "uri" else found

    monkeypatch.setattr(flags, "cells", with_uri)
    assert summary(flags).sources == {source: 40}
