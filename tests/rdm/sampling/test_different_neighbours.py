"""Sampling with neighbours that are different pictures: the copies of a nearer neighbour are left out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw, model_samples
from outlined import SHAPES, write_drawings
from pictures import QUIET, ProjectionEmbedder
from PIL import Image
from toy import rdm_config, ship

from rdm.evaluate.options import SampleOptions
from rdm.loading import Loaded
from rdm.retrieval import NeighbourIndex, RetrievalDatabase, Retriever, build_database
from rdm.retrieval.classes import labelled
from rdm.retrieval.database.outlines import Outlines
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    """Each shape in three colours."""
    source = write_drawings(tmp_path / "drawings", ("blue", "line", "red"))
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)


def shapes(database: RetrievalDatabase) -> np.ndarray:
    return np.array([name.rpartition("/")[2].removesuffix(".png") for name in database.column("image_id").to_pylist()])


def retriever(
    database: RetrievalDatabase, least: float | None, rows: np.ndarray | None = None, agree: int = 1
) -> Retriever:
    index = NeighbourIndex.open(database)
    return Retriever(ProjectionEmbedder, database, lambda: index, rows, Outlines.of(database, least, agree))


def queries() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def test_places_hold_the_nearest_of_each_drawing(database: RetrievalDatabase) -> None:
    names, plain, different = shapes(database), retriever(database, None), retriever(database, 0.9)
    order, found = plain(queries(), 24), different(queries(), 5)
    for line, scores, rows in zip(order.rows, order.scores, found.rows, strict=True):
        first = [place for place, row in enumerate(line) if names[row] not in names[line[:place]]][:5]
        assert rows.tolist() == line[first].tolist()
        place = order.rows.tolist().index(line.tolist())
        np.testing.assert_allclose(found.scores[place], scores[first], atol=1e-6)
    np.testing.assert_array_equal(found.embeddings.numpy(), database.embeddings(found.rows))
    assert any(len(set(names[line])) < 5 for line in plain(queries(), 5).rows)
    # Above 1 nothing is a copy: the very rows of before.
    off = retriever(database, 2.0)(queries(), 5)
    assert (off.rows == order.rows[:, :5]).all() and off.scores.tobytes() == plain(queries(), 5).scores.tobytes()
    with pytest.raises(ValueError, match=r"^got k=9, expected at most 8, [^\n]*raise same_outline=0.9$"):
        different(queries(), 9)


def test_a_pool_a_selection_and_a_class_hold_different_drawings(database: RetrievalDatabase) -> None:
    names = shapes(database)
    found = retriever(database, 0.9)(queries().repeat(9, 1), 3, pool=8, generator=np.random.default_rng(0))
    assert all(len(set(names[rows])) == 3 for rows in found.rows)
    assert set(names[found.rows].ravel()) == set(SHAPES)  # the pool holds one of each
    selected = np.flatnonzero(np.isin(names, ("bar", "post", "arrow")))
    found = retriever(database, 0.9, selected)(queries(), 3)
    assert {tuple(sorted(names[rows])) for rows in found.rows} == {("arrow", "bar", "post")}
    with pytest.raises(ValueError, match="got k=4, expected at most 3"):
        retriever(database, 0.9, selected)(queries(), 4)
    database.remove(selected[names[selected] == "bar"])
    with pytest.raises(ValueError, match="got k=3, expected at most 2"):
        retriever(database, 0.9, selected)(queries(), 3)
    one = np.flatnonzero(np.isin(names, ("arrow", "slope", "corner")))
    rows = labelled(retriever(database, 0.9, one), ["red", "blue"], 3, [0, 1]).rows
    assert all(set(names[line]) == {"arrow", "slope", "corner"} for line in rows)


def test_neighbours_that_agree_are_chosen_for_the_first(database: RetrievalDatabase) -> None:
    agreeing, different = retriever(database, 0.9, agree=6), retriever(database, 0.9)
    outlines = agreeing.outlines
    assert outlines is not None and agreeing.about == {"same_outline": 0.9, "agree": 6}
    near, found = different(queries(), 6), agreeing(queries(), 3)
    for line, scores, rows, theirs in zip(near.rows, near.scores, found.rows, found.scores, strict=True):
        best = np.argsort(-outlines.agreement(outlines[line[0]], line[1:]))[:2]
        places = [0, *sorted(1 + best)]
        assert rows.tolist() == line[places].tolist()
        np.testing.assert_allclose(theirs, scores[places], atol=1e-6)
    assert (found.rows != near.rows[:, :3]).any()
    # From a pool, the first one is drawn.
    pool = different(queries()[:1], 8).rows[0].tolist()
    drawn = agreeing(queries()[:1].repeat(60, 1), 2, pool=8, generator=np.random.default_rng(0)).rows
    assert set(drawn.ravel()) == set(pool) and all(pool.index(a) < pool.index(b) for a, b in drawn)
    mean = np.mean([float(outlines[a] @ outlines[b]) for a, b in drawn])
    plain = different(queries()[:1].repeat(60, 1), 2, pool=8, generator=np.random.default_rng(0)).rows
    assert mean > np.mean([float(outlines[a] @ outlines[b]) for a, b in plain]) + 0.05
    # Fewer rows than the choice is among are all that there are.
    names = shapes(database)
    few = np.flatnonzero(np.isin(names, ("bar", "post", "arrow")))
    assert {tuple(sorted(names[rows])) for rows in retriever(database, 0.9, few, 12)(queries(), 3).rows} == {
        ("arrow", "bar", "post")
    }


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model over 40 flags, whose training left out copies; many flags share their outline."""
    folder = tmp_path_factory.mktemp("different")
    config = rdm_config(folder)
    config["data"]["params"] |= {"same_outline": 0.8}
    return ship(folder / "model", config)


@pytest.fixture(scope="module")
def different(system: Path) -> Pipeline:
    return Pipeline.load(str(system))


def are_different(loaded: Loaded, rows: np.ndarray) -> bool:
    outlines = Outlines(loaded.retriever.database, 0.8)
    return all(len(outlines.different(line, len(line))) == len(line) for line in rows)


WAYS: list[tuple[Any, list[Any], dict[str, Any]]] = [
    (ways.texts, [["white flag", "red flag"]], {"negative": "red"}),
    (ways.between, ["white flag", "red flag", 3], {}),
    (ways.classes, [["flag"] * 3], {"pool": 6}),
    (ways.classes, [["flag"] * 3], {"by": "label"}),
    (ways.popular, [3], {"top_m": 1.0}),
]


@pytest.mark.parametrize(("way", "what", "options"), WAYS)
def test_every_way_asks_for_different_ones_as_training_did(
    different: Pipeline, way: Any, what: list[Any], options: dict[str, Any], system: Path
) -> None:
    request = way(different, *what, k=5, **options)
    assert are_different(different, request.retrieved.rows)
    assert request.asked["same_outline"] == 0.8
    plain = way(Pipeline.load(str(system), same_outline=2.0), *what, k=5, **options)
    assert "same_outline" not in plain.asked and not are_different(different, plain.retrieved.rows)


def test_pictures_and_edits_ask_for_different_ones(different: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(different.retriever.database.patches([5])[0]).save(tmp_path / "a.png")
    requests = [
        ways.image(different, tmp_path / "a.png", 2, k=5),
        edit(different, tmp_path / "a.png", 2, k=5, strength=0.5),
        edit(different, tmp_path / "a.png", 2, k=5, prompt="white flag", strength=0.5, invert=True),
    ]
    for request in requests:
        assert request.asked["same_outline"] == 0.8 and are_different(different, request.retrieved.rows)
    inverted = np.array([requests[2].canvas.about["inverted_with_rows"]])  # type: ignore[union-attr]
    assert inverted.shape == (1, 5) and are_different(different, inverted)


def test_an_image_is_made_again_whatever_its_record_says_of_copies(
    different: Pipeline, system: Path, tmp_path: Path
) -> None:
    plain = Pipeline.load(str(system), same_outline=2.0)
    assert plain.retriever.outlines is None
    for name, loaded in (("different", different), ("plain", plain)):
        made = draw(ways.texts, loaded, ["white flag"], k=4, seed=3, steps=2)
        save(made, loaded, tmp_path, name)
        record = read_record(tmp_path / f"{name}-000.png")
        assert record["asked"].get("same_outline") == (0.8 if name == "different" else None)
        again, pipeline = make_again(record)
        assert torch.equal(again.images, made.images)
        save(again, pipeline, tmp_path / "again", name)
        assert (tmp_path / "again" / f"{name}-000.png").read_bytes() == (tmp_path / f"{name}-000.png").read_bytes()


def test_an_evaluation_says_so_in_its_report(different: Pipeline, system: Path) -> None:
    about = model_samples(different, 2, ["white flag"], k=5, steps=1).about
    plain = model_samples(Pipeline.load(str(system), same_outline=2.0), 2, ["white flag"], k=5, steps=1).about
    assert about["asked"] == {**plain["asked"], "same_outline": 0.8} and about["sha256"] != plain["sha256"]
    given = dict.fromkeys(SampleOptions.__dataclass_fields__)
    assert SampleOptions.of_command_line(given | {"same_outline": 0.7}).same_outline == 0.7
    del given["same_outline"]  # a report of an earlier version
    assert SampleOptions.of_command_line(given).same_outline is None


def test_a_database_without_pictures_keeps_copies_unless_asked(
    system: Path, different: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_drawings(tmp_path / "drawings", ("blue", "line", "red"), 16)
    embedder = different.retriever.embedder
    database = build_database(tmp_path / "db", source, embedder, progress=False)
    NeighbourIndex.open(database)
    assert Pipeline.load(str(system), str(database.path)).retriever.outlines is not None
    shutil.rmtree(tmp_path / "drawings")
    with caplog.at_level(logging.WARNING):
        loaded = Pipeline.load(str(system), str(database.path))
    assert "has lost its pictures, so copies are not left out" in caplog.text
    assert ways.texts(loaded, ["bar"], k=3).asked == {"way": "text", "k": 3}
    asked = Pipeline.load(str(system), str(database.path), same_outline=0.9)
    with pytest.raises(ValueError, match="^same_outline compares pictures, but [^\n]*$"):
        ways.texts(asked, ["bar"], k=3)
