"""Outlines: which pictures count as copies of one another."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from outlined import COLOURS, SHAPES, drawing, write_drawings
from pictures import QUIET, ProjectionEmbedder
from PIL import Image

from ldm.pictures import from_uint8
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.outlines import Outlines, outline
from rdm.retrieval.database.rows import RetrievalDatabase

EMOJI = Path(__file__).parents[4] / "data" / "emoji"


def of(pixels: np.ndarray) -> np.ndarray:
    return outline(from_uint8(torch.from_numpy(pixels.copy()).permute(2, 0, 1)))


def test_a_drawing_has_its_outline_in_every_colour_size_and_file() -> None:
    first = {shape: of(drawing(shape, "red")) for shape in SHAPES}
    for shape, own in first.items():
        assert own.shape == (1024,) and own @ own == pytest.approx(1, abs=1e-5)
        packed = io.BytesIO()
        Image.fromarray(drawing(shape, "red")).save(packed, "JPEG", quality=80)
        others = [of(drawing(shape, colour)) for colour in COLOURS]
        others += [of(drawing(shape, "red", 48)), of(np.asarray(Image.open(packed)))]
        assert min(own @ other for other in others) > 0.9
        assert max(own @ other for name, other in first.items() if name != shape) < 0.7
    blank = of(np.full((32, 32, 3), 255, dtype=np.uint8))
    assert not blank.any()
    grey = of(np.full((7, 9, 3), 77, dtype=np.uint8))
    assert grey.shape == (1024,) and not grey.any()


def test_it_sees_that_two_styles_share_their_outlines_and_that_others_do_not() -> None:
    def pictures(style: str) -> dict[str, bytes]:
        table = pq.read_table(EMOJI / f"{style}.parquet", columns=["image", "concept"]).to_pylist()
        return {row["concept"]: row["image"]["bytes"] for row in table}

    styles = {name: pictures(name) for name in ("openmoji", "openmoji-line", "noto", "twemoji")}
    concepts = sorted(set.intersection(*(set(known) for known in styles.values())))[::25]
    found = {
        name: np.stack([of(np.asarray(Image.open(io.BytesIO(known[concept])).convert("RGB"))) for concept in concepts])
        for name, known in styles.items()
    }
    assert len(concepts) > 50

    def share(first: str, second: str) -> float:
        return float(np.mean((found[first] * found[second]).sum(1) >= 0.9))

    assert share("openmoji", "openmoji-line") > 0.85
    assert share("noto", "twemoji") < 0.1
    assert share("openmoji-line", "twemoji") < 0.05


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    source = write_drawings(tmp_path / "drawings", ("blue", "line", "red"))
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)


def test_the_first_of_several_copies_is_kept(database: RetrievalDatabase) -> None:
    names = [name.rpartition("/")[2] for name in database.column("image_id").to_pylist()]
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    outlines = Outlines(database, 0.9)
    assert outlines.has_pictures()
    first = [place for place, row in enumerate(order) if names[row] not in [names[other] for other in order[:place]]]
    assert outlines.different(order, 24) == first and len(first) == len(SHAPES)
    assert outlines.different(order, 3) == first[:3]
    without = [place for place in first if names[order[place]] != "bar.png"]
    assert outlines.different(order, 24, [of(drawing("bar", "red"))]) == without
    np.testing.assert_allclose(outlines[order[0]], of(database.patches([order[0]])[0]), atol=1e-3)


def test_what_cannot_be_is_refused_in_one_line(database: RetrievalDatabase, tmp_path: Path) -> None:
    for least in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"^got same_outline={least}, expected a number above 0[^\n]*$"):
            Outlines.of(database, least)
    assert Outlines.of(database, None) is None and Outlines.of(database, 1.5) is None
    (tmp_path / "drawings").rename(tmp_path / "elsewhere")
    outlines = Outlines(RetrievalDatabase.open(database.path), 0.9)
    assert not outlines.has_pictures()
    with pytest.raises(ValueError, match="^same_outline compares pictures, but [^\n]*; or leave same_outline out$"):
        _ = outlines[3]


def test_neighbours_agree_with_the_first_in_shape_and_place(database: RetrievalDatabase) -> None:
    names = [name.rpartition("/")[2].removesuffix(".png") for name in database.column("image_id").to_pylist()]
    order = np.random.default_rng(3).permutation(len(names)).tolist()
    for among in (4, 6, 24):
        outlines = Outlines(database, 0.9, among)
        different = outlines.different(order, among)
        own = outlines[order[0]]
        others = sorted(different[1:], key=lambda place: -float(own @ outlines[order[place]]))
        for k in (1, 2, 3):
            assert outlines.chosen(order, k) == sorted([0, *others[: k - 1]])
    # All that there are, if there are no more; and the nearest ones without a choice.
    assert Outlines(database, 0.9, 24).chosen(order, 8) == different
    assert Outlines(database, 0.9).chosen(order, 3) == different[:3]
    assert outlines.chosen(order, 3) != different[:3]
    # A square and a corner share two sides; a lozenge and a bar share no line.
    square, lozenge = (names.index(shape) for shape in ("square", "lozenge"))
    corner, bar = ([row for row, name in enumerate(names) if name == shape] for shape in ("corner", "bar"))
    assert outlines.agreement(outlines[square], corner).min() > 0.3
    assert outlines.agreement(outlines[lozenge], bar).max() < 0.3
    np.testing.assert_allclose(outlines.agreement(outlines[square], [square]), 1, atol=1e-3)


def test_a_choice_that_cannot_be_meant_is_refused(database: RetrievalDatabase) -> None:
    with pytest.raises(ValueError, match="^got agree=0, expected a number of rows of at least 1$"):
        Outlines.of(database, 0.9, 0)
    for least in (None, 1.5):
        with pytest.raises(ValueError, match=f"^got agree=8 with same_outline={least}, [^\n]*; set same_outline=0.9$"):
            Outlines.of(database, least, 8)
