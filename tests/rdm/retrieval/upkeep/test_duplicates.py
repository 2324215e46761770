"""Duplicates are what brute force over all pairs says."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import ProjectionEmbedder, write_pictures
from PIL import Image

from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.upkeep.duplicates import find_duplicates, write_duplicates


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    """40 pictures; 12 copies of one, 3 of another, and one with a pixel changed."""
    source = write_pictures(tmp_path / "pictures", 40)
    root = tmp_path / "pictures"
    for number in range(12):
        shutil.copy(root / "class0/004.png", root / f"class1/copy{number}.png")
    for number in range(3):
        shutil.copy(root / "class1/003.png", root / f"class0/a{number}.png")
    picture = Image.open(root / "class0/000.png")
    picture.putpixel((3, 3), (1, 2, 3))
    picture.save(root / "class1/near.png")
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False, shard_rows=9)


def greedy(database: RetrievalDatabase, near: float, gone: set[int]) -> dict[int, int]:
    """Keeps a row unless an earlier kept one is as similar; the most similar stands for it."""
    vectors = database.embeddings(np.arange(len(database)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine, of = unit @ unit.T, dict[int, int]()
    for row in set(range(len(database))) - gone:
        earlier = [other for other in range(row) if cosine[row, other] >= near and other not in gone | of.keys()]
        if earlier:
            of[row] = max(earlier, key=lambda other: cosine[row, other])
    return of


@pytest.mark.parametrize("near", [0.9999, 0.97, 0.6])
def test_duplicates_are_those_of_brute_force(database: RetrievalDatabase, near: float) -> None:
    found = find_duplicates(database, NeighbourIndex.open(database), near, progress=False)
    expected = greedy(database, near, set())
    assert found.rows.tolist() == sorted(expected)
    assert found.exact == 15 and (found.similarity >= near - 1e-6).all()
    assert not set(found.of.tolist()) & set(found.rows.tolist()) and (found.of < found.rows).all()
    names = database.column("image_id").to_pylist()
    if near < 0.9:
        assert len(found.rows) > 30
        return
    pairs = {names[row]: names[other] for row, other in zip(found.rows, found.of, strict=True)}
    assert all(pairs[f"class1/copy{number}.png"] == "class0/004.png" for number in range(12))
    assert pairs["class1/003.png"] == "class0/a0.png"
    assert ("class1/near.png" in pairs) is (near < 0.9999)


def test_only_the_same_pixels_above_one_and_nothing_that_is_removed(database: RetrievalDatabase) -> None:
    index = NeighbourIndex.open(database)
    found = find_duplicates(database, index, 2.0, progress=False)
    assert (len(found.rows), found.exact, set(found.similarity.tolist())) == (15, 15, {1.0})
    write_duplicates(database, found)
    with (database.path / "duplicates.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 15 and lines[0]["similarity"] == "1.0000"
    assert [(line["image_id"], line["of_image_id"]) for line in lines[:2]] == [
        ("class0/a1.png", "class0/a0.png"),
        ("class0/a2.png", "class0/a0.png"),
    ]
    assert database.remove(found.rows) == 15
    assert not len(find_duplicates(database, index, 2.0, progress=False).rows)
