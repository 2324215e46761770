"""Single pictures that become rows of a database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import ProjectionEmbedder
from PIL import Image

from ldm.data.decode import centre_crop
from ldm.locks import locked
from rdm.retrieval.database.find import select_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex, current_index
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.retrieval.upkeep.append import APPEND_LOCK
from rdm.retrieval.upkeep.compact import compact


def noise(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def new(seed: int, **known: str) -> NewPicture:
    return NewPicture(noise(seed), **{"licence": "CC-BY-4.0", "attribution": "A. Uthor", **known})


def test_added_pictures_are_rows_with_what_is_known_of_them(database: RetrievalDatabase) -> None:
    before = database.embeddings(np.arange(19))
    grown, rows = add_pictures(database.path, [new(1, caption="noise"), new(2, licence="MIT")], ProjectionEmbedder())
    assert rows.tolist() == [19, 20] and len(grown) == 21
    np.testing.assert_array_equal(grown.embeddings(np.arange(19)), before)
    first, second = grown.metadata(rows)
    assert (first["caption"], first["licence"], first["attribution"]) == ("noise", "CC-BY-4.0", "A. Uthor")
    assert (second["caption"], second["licence"]) == ("", "MIT") and first["image_id"] != second["image_id"]
    for patch, seed in zip(grown.patches(rows), (1, 2), strict=True):
        np.testing.assert_array_equal(patch, np.asarray(centre_crop(noise(seed), 8)))
    assert select_rows(grown, ["licence=MIT"]).tolist() == [20]
    grown.verify()
    again, rows = add_pictures(database.path, [new(3)], ProjectionEmbedder())
    assert rows.tolist() == [21] and len({entry["image_id"] for entry in again.metadata([19, 20, 21])}) == 3


def test_the_index_is_built_again_in_its_kind_and_finds_the_new_row(database: RetrievalDatabase) -> None:
    NeighbourIndex.open(database, "HNSW8", ram="1GB", progress=False)
    grown, (row,) = add_pictures(database.path, [new(1)], ProjectionEmbedder())
    index = current_index(grown)
    assert (index.card["factory"], index.card["ram"], len(index)) == ("HNSW8", 10**9, 20)
    assert index.search(grown.embeddings([row]), 1).rows.tolist() == [[row]]
    assert current_index(grown).card == index.card  # nothing is built


def test_a_picture_that_was_removed_and_deleted_can_be_added_again(database: RetrievalDatabase) -> None:
    grown, (row,) = add_pictures(database.path, [new(1)], ProjectionEmbedder())
    grown.remove([row, 3])
    again, (second,) = add_pictures(database.path, [new(1)], ProjectionEmbedder())
    assert (row, second, again.living_count) == (19, 20, 19)
    small = compact(database.path)
    assert len(small) == 19 and (small.patches([18])[0] == again.patches([20])[0]).all()
    files = {Path(each["source"]["params"].get("files", "")).name for each in small.sources}
    bigger, _ = add_pictures(database.path, [new(2)], ProjectionEmbedder())
    left = {file.name for file in (database.path / "added").iterdir()}
    assert len(bigger) == 20 and len(left) == 2 and left > files - {""}
    bigger.patches([18, 19])


def without_source(database: RetrievalDatabase) -> None:
    card = json.loads((database.path / "database.json").read_text())
    card["sources"][0]["source"] = {}
    (database.path / "database.json").write_text(json.dumps(card))


def damaged(database: RetrievalDatabase) -> None:
    (database.path / "append.json").write_text("{}")


@pytest.mark.parametrize(
    ("pictures", "prepare", "message"),
    [
        ([], None, "no picture.*at least one"),
        ([new(1, licence=" ")], None, "picture 1: got no licence"),
        ([new(1), new(2, licence="", attribution="")], None, "picture 2: got no licence and no attribution"),
        ([new(1), new(2), new(1)], None, "picture 3 has the pixels of picture 1"),
        ([new(1)], without_source, "no source.*give size"),
        ([new(1)], damaged, "append.json has .*no 'format'"),
    ],
)
def test_what_cannot_be_added_changes_nothing(
    database: RetrievalDatabase,
    pictures: list[NewPicture],
    prepare: Callable[[RetrievalDatabase], None] | None,
    message: str,
) -> None:
    if prepare is not None:
        prepare(database)
    with pytest.raises(ValueError, match=message):
        add_pictures(database.path, pictures, ProjectionEmbedder())
    assert RetrievalDatabase.open(database.path).fingerprint == database.fingerprint
    assert not list(database.path.glob("added/*"))


def test_a_picture_of_a_row_is_refused_while_the_row_lives(database: RetrievalDatabase) -> None:
    (pixels,) = database.patches([7])
    known = [NewPicture(Image.fromarray(pixels), "MIT", "A. Uthor")]
    with pytest.raises(ValueError, match="picture 1 has the pixels of row 7"):
        add_pictures(database.path, known, ProjectionEmbedder())
    database.remove([7])
    grown, rows = add_pictures(database.path, known, ProjectionEmbedder())
    assert rows.tolist() == [19] and (grown.embeddings([19]) == database.embeddings([7])).all()


def test_another_embedder_and_another_process_are_refused(database: RetrievalDatabase) -> None:
    with pytest.raises(ValueError, match="projection-0.*projection-1"):
        add_pictures(database.path, [new(1)], ProjectionEmbedder(seed=1))
    with locked(database.path / APPEND_LOCK, "appending"), pytest.raises(ValueError, match="appending to .*; wait"):
        add_pictures(database.path, [new(1)], ProjectionEmbedder())
    without_source(database)
    _, rows = add_pictures(database.path, [new(1)], ProjectionEmbedder(), size=8)
    assert rows.tolist() == [19]
