"""Neighbour tables without copies: rows with the outline of the picture, and of a nearer neighbour, are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outlined import SHAPES, write_drawings
from pictures import QUIET, ProjectionEmbedder, contents, write_clip

from ldm.util import instantiate_from_config
from rdm.data import RetrievalDataModule
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours import build as module
from rdm.retrieval.neighbours.build import build_neighbour_table, prepare_neighbour_table
from rdm.retrieval.neighbours.table import NeighbourTable


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    """Each shape in three colours."""
    source = write_drawings(tmp_path / "drawings", ("blue", "line", "red"))
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)


@pytest.fixture
def images(tmp_path: Path) -> Any:
    """Each shape in red and larger."""
    return instantiate_from_config(write_drawings(tmp_path / "red", ("red",), 48))


def build(database: RetrievalDatabase, images: Any, path: Path, embedder: Any = None, **options: Any) -> NeighbourTable:
    options = {"near_duplicate": 2.0, "progress": False, **options}
    return build_neighbour_table(
        path, images, embedder or ProjectionEmbedder(), database, NeighbourIndex.open(database), **options
    )


def shapes(database: RetrievalDatabase) -> np.ndarray:
    return np.array([name.rpartition("/")[2].removesuffix(".png") for name in database.column("image_id").to_pylist()])


def test_neighbours_are_different_drawings_and_none_is_the_picture(
    tmp_path: Path, database: RetrievalDatabase, images: Any
) -> None:
    names = shapes(database)
    everything = build(database, images, tmp_path / "everything", k=23)
    table = build(database, images, tmp_path / "table", k=7, outlines=Outlines(database, 0.9))
    for number in range(len(images)):
        own = images.metadata(number)["id"].rpartition("/")[2].removesuffix(".png")
        nearest = [row for row in everything.rows[number] if names[row] != own]
        first = [row for place, row in enumerate(nearest) if names[row] not in names[nearest[:place]]]
        assert table.rows[number].tolist() == first and len(first) == len(SHAPES) - 1
    assert table.card["leave_out"] == {"same_image_id": True, "near_duplicate": 2.0, "same_outline": 0.9}
    assert "same_outline" not in everything.card["leave_out"]
    with pytest.raises(ValueError, match=r"^[^\n]* has 7 neighbours [^\n]*k=8;[^\n]*or same_outline=0.9$"):
        build(database, images, tmp_path / "more", k=8, outlines=Outlines(database, 0.9))


def test_captions_and_patches_leave_out_the_same(tmp_path: Path, database: RetrievalDatabase, images: Any) -> None:
    for file in (tmp_path / "red").rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a red {file.stem}", encoding="utf-8")
    names, outlines = shapes(database), Outlines(database, 0.9)
    table = build(database, images, tmp_path / "table", k=7, query="caption", outlines=outlines)
    for number in range(len(images)):
        own = images.metadata(number)["id"].rpartition("/")[2].removesuffix(".png")
        assert sorted([own, *names[table.rows[number]]]) == sorted(SHAPES)
    patches = build(database, images, tmp_path / "patches", k=7, patches_per_side=2, outlines=outlines)
    assert all(len(set(names[line])) == 7 for line in patches.rows.reshape(-1, 7))


def test_a_stopped_search_continues_to_the_same_bytes(
    tmp_path: Path, database: RetrievalDatabase, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 3)
    build(database, images, tmp_path / "whole", k=4, outlines=Outlines(database, 0.9))

    class Stopping(ProjectionEmbedder):
        seen = 0

        def images(self, images: torch.Tensor) -> torch.Tensor:
            self.seen += len(images)
            if self.seen > 4:
                raise KeyboardInterrupt
            return super().images(images)

    with pytest.raises(KeyboardInterrupt):
        build(database, images, tmp_path / "parts", Stopping(), k=4, outlines=Outlines(database, 0.9))
    build(database, images, tmp_path / "parts", k=4, outlines=Outlines(database, 0.9))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_table_with_another_threshold_is_built_again(
    tmp_path: Path, database: RetrievalDatabase, images: Any
) -> None:
    index = NeighbourIndex.open(database)

    def prepare(least: float | None) -> int:
        outlines = Outlines.of(database, least)
        options: dict[str, Any] = {"k": 3, "outlines": outlines, "near_duplicate": 2.0, "progress": False}
        prepare_neighbour_table(tmp_path / "t", images, ProjectionEmbedder(), database, index, **options)
        return (tmp_path / "t" / "neighbours.npy").stat().st_ino

    build(database, images, tmp_path / "t", k=3)  # as tables were before there was the option
    first = (tmp_path / "t" / "neighbours.npy").stat().st_ino
    assert prepare(None) == first and prepare(1.5) == first
    second = prepare(0.9)
    assert second != first and prepare(0.9) == second
    third = prepare(0.8)
    assert third != second and prepare(None) != third


def test_a_database_without_pictures_is_refused_only_if_they_are_needed(
    tmp_path: Path, database: RetrievalDatabase, images: Any
) -> None:
    (tmp_path / "drawings").rename(tmp_path / "elsewhere")
    bare = RetrievalDatabase.open(database.path)
    assert build(bare, images, tmp_path / "plain", k=3).k == 3
    with pytest.raises(ValueError, match="^same_outline compares pictures, but [^\n]*leave same_outline out$"):
        build(bare, images, tmp_path / "table", k=3, outlines=Outlines(bare, 0.9))


def test_the_config_says_from_which_correlation_on(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "batch_size": 4,
        "embedder": {
            "target": "ldm.modules.encoders.modules.OpenClipEmbedder",
            "params": {"model": write_clip(tmp_path / "clip")},
        },
        "database": {"path": str(tmp_path / "db"), "source": write_drawings(tmp_path / "all", ("blue", "line"))},
        "train": write_drawings(tmp_path / "train", ("red",)),
        "validation": write_drawings(tmp_path / "validation", ("red",), shapes=("bar", "arrow")),
        "near_duplicate": 2.0,
        "k": 4,
        "stored_k": 7,
    }
    module = RetrievalDataModule(**config, same_outline=0.9)
    module.prepare_data()
    names = shapes(module.database)
    for name in ("train", "validation"):
        table = module.table(name)
        assert table.card["leave_out"]["same_outline"] == 0.9
        assert all(len(set(names[line])) == 7 for line in table.rows)
    batch = next(iter(module.train_dataloader()))
    for name, rows in zip(batch["id"], batch["neighbour_rows"], strict=True):
        assert name.rpartition("/")[2].removesuffix(".png") not in names[rows]
    RetrievalDataModule(**config).prepare_data()
    assert "same_outline" not in RetrievalDataModule(**config).table("train").card["leave_out"]
    with pytest.raises(ValueError, match="got same_outline=0, expected a number above 0"):
        RetrievalDataModule(**config, same_outline=0).prepare_data()
