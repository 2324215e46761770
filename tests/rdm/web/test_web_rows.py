"""Rows as the page shows them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdm.loading import with_database
from rdm.sampling.pipeline import Pipeline
from rdm.web.rows import row_numbers, search, shown_rows


@pytest.fixture
def pipeline(loaded: Pipeline, tmp_path: Path) -> Pipeline:
    """With a database of its own."""
    shutil.copytree(loaded.retriever.database.path, tmp_path / "flags")
    return with_database(loaded, tmp_path / "flags")


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_text_finds_the_rows_that_the_model_would_see(pipeline: Pipeline) -> None:
    found, database = search(pipeline, "a flag", k=5), pipeline.retriever.database
    vector = pipeline.retriever.embedder.texts(["a flag"]).numpy()
    expected = pipeline.retriever.index.search(vector, 5)
    assert [row.number for row in found] == expected.rows[0].tolist()
    assert [row.similarity for row in found] == [round(float(score), 4) for score in expected.scores[0]]
    for row, entry, patch in zip(found, database.metadata(expected.rows), database.patches(expected.rows), strict=True):
        assert row.facts() == {"row": row.number, "similarity": row.similarity, **row.about}
        assert row.about["licence"] == entry["licence"] != "" and row.about["attribution"] == entry["attribution"]
        np.testing.assert_array_equal(pixels(row.png), patch)


def test_a_picture_of_the_database_finds_its_own_row_first(pipeline: Pipeline) -> None:
    (picture,) = pipeline.retriever.database.patches([7])
    (first, *_) = search(pipeline, picture=Image.fromarray(picture), k=3)
    assert first.number == 7 and first.similarity == pytest.approx(1.0, abs=2e-3)
    both = search(pipeline, "a flag", Image.fromarray(picture), k=3)
    assert both[0].similarity != first.similarity


def test_rules_restrict_every_search_and_alone_list_rows_in_order(pipeline: Pipeline) -> None:
    database = pipeline.retriever.database
    noto = np.flatnonzero(database.values("style", np.arange(40)) == "noto").tolist()
    listed = search(pipeline, only=["style=noto"], k=5)
    assert [row.number for row in listed] == noto[:5] and {row.similarity for row in listed} == {None}
    assert {row.number for row in search(pipeline, "a flag", only=["style=noto"], k=100)} == set(noto)
    two = search(pipeline, only=["style=noto", "style=twemoji", "licence=Apache-2.0"], k=100)
    assert {row.number for row in two} == set(noto)
    with pytest.raises(ValueError, match="style=nothing"):
        search(pipeline, only=["style=nothing"])
    with pytest.raises(ValueError, match="'noto', expected COLUMN=VALUE"):
        search(pipeline, only=["noto"])


def test_removed_rows_are_found_no_more_and_shown_without_their_picture(pipeline: Pipeline) -> None:
    database = pipeline.retriever.database
    first, second = (row.number for row in search(pipeline, "a flag", k=2))
    database.remove([first])
    assert search(pipeline, "a flag", k=1)[0].number == second
    gone, there = shown_rows(database, [first, second])
    assert gone.removed and gone.png is None and gone.facts()["removed"] is True
    assert not there.removed and there.png is not None
    noto = np.flatnonzero(database.values("style", np.arange(40)) == "noto")
    database.remove(noto)
    with pytest.raises(ValueError, match="style=noto are removed"):
        search(pipeline, "a flag", only=["style=noto"])


def test_a_row_whose_picture_is_lost_is_shown_without_it(pipeline: Pipeline) -> None:
    database = pipeline.retriever.database
    database.sources[0]["source"]["params"]["files"] = [str(database.path / "moved.parquet")]
    assert [(row.png, row.removed) for row in shown_rows(database, [3, 4])] == [(None, False)] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", []), ("3", [3]), (" 3, 17;20 - 22 ", [3, 17, 20, 21, 22]), ("5 5 4-5", [4, 5]), ("0-39", list(range(40)))],
)
def test_row_numbers_are_read(pipeline: Pipeline, text: str, expected: list[int]) -> None:
    assert row_numbers(text, pipeline.retriever.database).tolist() == expected


@pytest.mark.parametrize("text", ["x", "3-", "-3", "5-4", "40", "0-999999999999999999", "9" * 30, "1.5", "３"])
def test_other_texts_are_no_row_numbers(pipeline: Pipeline, text: str) -> None:
    with pytest.raises(ValueError, match="expected numbers from 0 to 39"):
        row_numbers(text, pipeline.retriever.database)
