"""Neighbours that training draws anew among the nearest ones each time it sees an image."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import ProjectionEmbedder, write_clip, write_pictures

from ldm.util import instantiate_from_config
from rdm.data import QueryDataset, RetrievalDataModule
from rdm.data.query_dataset import Drawn
from rdm.retrieval import NeighbourIndex, build_database, build_neighbour_table


def captioned(folder: Path, count: int, seed: int) -> dict[str, Any]:
    source = write_pictures(folder, count, seed=seed)
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        file.with_suffix(".txt").write_text(f"thing {number % 7}", encoding="utf-8")
    return source


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    clip = write_clip(tmp_path / "clip")
    return {
        "batch_size": 6,
        "embedder": {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": clip}},
        "database": {"path": str(tmp_path / "db"), "source": write_pictures(tmp_path / "all", 20)},
        "train": captioned(tmp_path / "train", 24, seed=1),
        "validation": captioned(tmp_path / "validation", 6, seed=2),
        "k": 2,
        "stored_k": 7,
    }


def epoch_of(loader: Any, epoch: int) -> dict[str, tuple[int, ...]]:
    """The neighbours of each image in one epoch."""
    loader.sampler.set_epoch(epoch)
    return read(loader)


def read(batches: Any) -> dict[str, tuple[int, ...]]:
    lines = [zip(batch["id"], batch["neighbour_rows"].tolist(), strict=True) for batch in batches]
    return {name: tuple(rows) for batch in lines for name, rows in batch}


def test_k_of_the_nearest_ones_are_drawn_each_time_and_all_equally_often(config: dict[str, Any]) -> None:
    data = RetrievalDataModule(**config, draw_from=4)
    data.prepare_data()
    loader, stored = data.train_dataloader(), data.table("train").rows
    names, pairs = data.datasets["train"].images.names, Counter[tuple[int, ...]]()
    epochs = [epoch_of(loader, epoch) for epoch in range(60)]
    for found in epochs:
        for number, name in enumerate(names):
            pairs[tuple(stored[number].tolist().index(row) for row in found[name])] += 1
    # Two different ones of the first four, nearest first; each of the six pairs a sixth of the time.
    assert set(pairs) == set(combinations(range(4), 2))
    expected = 60 * 24 / 6
    assert all(abs(count - expected) < 4 * (expected * 5 / 6) ** 0.5 for count in pairs.values())
    assert len({tuple(sorted(found.items())) for found in epochs}) == 60
    (batch,) = [each for each in loader if names[3] in each["id"]]
    np.testing.assert_array_equal(batch["neighbours"], data.database.embeddings(batch["neighbour_rows"].numpy()))
    # What is not training has the nearest ones.
    held_out, validation = read(data.val_dataloader()), data.table("validation").rows
    assert list(held_out.values()) == [tuple(rows) for rows in validation[:, :2].tolist()]
    assert data.datasets["train"][5]["neighbour_rows"].tolist() == stored[5, :2].tolist()


def test_draws_leave_the_order_and_the_share_of_captions_as_they_are(config: dict[str, Any]) -> None:
    modules = [RetrievalDataModule(**config, caption_share=0.5, **options) for options in ({}, {"draw_from": 6})]
    modules[0].prepare_data()
    nearest, drawn = (epoch_of(module.train_dataloader(), 1) for module in modules)
    assert list(nearest) == list(drawn) and nearest != drawn
    names = modules[1].datasets["train"].images.names
    own, captions = (modules[1].table(name).rows for name in ("train", "train-captions"))
    for number, name in enumerate(names):
        table = captions if nearest[name] == tuple(captions[number, :2]) else own
        assert set(drawn[name]) <= set(table[number, :6].tolist())
    same = RetrievalDataModule(**config, caption_share=0.5, draw_from=2)
    assert epoch_of(same.train_dataloader(), 1) == nearest


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_continues_draws_the_same(config: dict[str, Any], num_workers: int) -> None:
    def loader() -> Any:
        data = RetrievalDataModule(**config, draw_from=5, caption_share=0.5, num_workers=num_workers)
        data.prepare_data()
        return data.train_dataloader()

    whole = epoch_of(loader(), 1)
    begun = loader()
    begun.sampler.set_epoch(1)
    stream = iter(begun)
    got = read([next(stream), next(stream)])
    rest = loader()
    rest.load_state_dict(begun.state_dict())
    assert list((got | read(rest)).items()) == list(whole.items())


def test_each_patch_has_a_draw_of_its_own(tmp_path: Path) -> None:
    images = instantiate_from_config(write_pictures(tmp_path / "pictures", 4))
    database = build_database(
        tmp_path / "db", write_pictures(tmp_path / "others", 20, seed=1), ProjectionEmbedder(), progress=False
    )
    options: dict[str, Any] = {"k": 6, "patches_per_side": 2, "progress": False}
    table = build_neighbour_table(
        tmp_path / "table", images, ProjectionEmbedder(), database, NeighbourIndex.open(database), **options
    )
    dataset = QueryDataset(images, database, table, k=3, draw_from=6)
    places = set()
    for seed in range(8):
        rows = dataset[Drawn(2, seed=seed)]["neighbour_rows"].numpy().reshape(4, 3)
        drawn = [[table.rows[2, patch].tolist().index(row) for row in rows[patch]] for patch in range(4)]
        assert all(line == sorted(set(line)) for line in drawn)
        places.add(tuple(map(tuple, drawn)))
    assert len(places) == 8 and any(len(set(lines)) > 1 for lines in places)
    assert dataset[Drawn(2)]["neighbour_rows"].tolist() == table.rows[2, :, :3].reshape(-1).tolist()


def test_removed_rows_are_made_up_for_before_training(config: dict[str, Any]) -> None:
    data = RetrievalDataModule(**config, draw_from=5)
    data.prepare_data()
    stored = data.table("train").rows
    gone = [int(row) for row in stored[0, :3]]
    RetrievalDataModule(**config).database.remove(gone)
    again = RetrievalDataModule(**config, draw_from=5)
    with pytest.raises(ValueError, match="4 of 7 neighbours, got k=5"):
        again.train_dataloader()
    again.prepare_data()
    assert not set(gone) & {row for rows in read(again.train_dataloader()).values() for row in rows}


def test_wrong_numbers_are_refused(config: dict[str, Any]) -> None:
    for number in (1, 8):
        with pytest.raises(ValueError, match=f"draw_from={number}, expected a number from k=2 to stored_k=7"):
            RetrievalDataModule(**config, draw_from=number)
    data = RetrievalDataModule(**config)
    data.prepare_data()
    images = instantiate_from_config(config["train"])
    with pytest.raises(ValueError, match="draw_from=1, expected at least k=2"):
        QueryDataset(images, data.database, data.table("train"), 2, draw_from=1)
