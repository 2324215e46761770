from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import ProjectionEmbedder, contents, write_clip, write_pictures

from ldm.util import instantiate_from_config
from rdm.data import QueryDataset, RetrievalDataModule
from rdm.retrieval import NeighbourIndex, RetrievalDatabase, build_database, build_neighbour_table


@pytest.fixture
def images(tmp_path: Path) -> Any:
    return instantiate_from_config(write_pictures(tmp_path / "pictures", 12))


@pytest.fixture
def database(tmp_path: Path) -> RetrievalDatabase:
    source = write_pictures(tmp_path / "others", 20, seed=1)
    return build_database(tmp_path / "db", source, ProjectionEmbedder(), progress=False)


@pytest.fixture
def table(tmp_path: Path, images: Any, database: RetrievalDatabase) -> Any:
    index, path = NeighbourIndex.open(database), tmp_path / "table"
    return build_neighbour_table(path, images, ProjectionEmbedder(), database, index, k=5, progress=False)


def test_items_hold_image_and_neighbours(images: Any, database: RetrievalDatabase, table: Any) -> None:
    dataset = QueryDataset(images, str(database.path), str(table.path), k=3)
    assert len(dataset) == 12
    item, plain = dataset[7], images[7]
    assert torch.equal(item["image"], plain["image"])
    assert {key: item[key] for key in plain if key != "image"} == {key: plain[key] for key in plain if key != "image"}
    assert dataset.metadata(7) == images.metadata(7)
    assert item["neighbour_rows"].tolist() == table.rows[7, :3].tolist()
    assert item["neighbours"].dtype == torch.float32
    np.testing.assert_array_equal(item["neighbours"].numpy(), database.embeddings(table.rows[7, :3]))


def test_what_does_not_fit_is_refused(tmp_path: Path, images: Any, database: RetrievalDatabase, table: Any) -> None:
    with pytest.raises(
        ValueError,
        match="5 neighbours.*k=32; rerun .* --k 32",
    ):
        QueryDataset(images, database, table, k=32)
    for count in (12, 13):
        other = instantiate_from_config(write_pictures(tmp_path / f"other{count}", count, classes=3))
        with pytest.raises(ValueError, match=f" 12 .* {count}; rerun"):
            QueryDataset(other, database, table)
    source = write_pictures(tmp_path / "third", 20, seed=2)
    foreign = build_database(tmp_path / "db2", source, ProjectionEmbedder(), progress=False)
    with pytest.raises(ValueError, match=f"{database.fingerprint}, got .*{foreign.fingerprint}"):
        QueryDataset(images, foreign, table)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    clip = write_clip(tmp_path / "clip")
    return {
        "batch_size": 3,
        "embedder": {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": clip}},
        "database": {"path": str(tmp_path / "db"), "source": write_pictures(tmp_path / "all", 16)},
        "train": write_pictures(tmp_path / "train", 9, seed=1),
        "validation": write_pictures(tmp_path / "validation", 4, seed=2),
        "k": 2,
        "stored_k": 6,
    }


def test_the_datamodule_makes_what_is_missing(tmp_path: Path, config: dict[str, Any]) -> None:
    module = RetrievalDataModule(**config)
    with pytest.raises(FileNotFoundError, match=r"scripts/build_database\.py"):
        module.setup()
    module.prepare_data()
    made = contents(tmp_path / "db")
    assert {"database.json", "index/index.json", "neighbours/train/neighbours.npy"} < set(made)
    module.prepare_data()
    assert contents(tmp_path / "db") == made

    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (3, 3, 8, 8)
    assert batch["neighbours"].shape == (3, 2, 8)
    numbers = [int(Path(name).stem) for name in batch["id"]]
    places = [module.datasets["train"].images.names.index(name) for name in batch["id"]]
    assert len(numbers) == 3
    assert batch["neighbour_rows"].tolist() == module.table("train").rows[places, :2].tolist()
    (last,) = list(module.val_dataloader())[1:]
    assert last["neighbour_rows"].tolist() == module.table("validation").rows[3:, :2].tolist()
    assert module.table("train").popularity(6).sum() == 54


def test_a_worker_process_reads_the_same(config: dict[str, Any]) -> None:
    module = RetrievalDataModule(**config)
    module.prepare_data()
    alone = list(module.val_dataloader())
    other = list(RetrievalDataModule(**config, num_workers=1).val_dataloader())
    assert len(alone) == len(other) == 2
    for mine, theirs in zip(alone, other, strict=True):
        assert torch.equal(mine["neighbours"], theirs["neighbours"])
        assert torch.equal(mine["image"], theirs["image"])


def test_a_database_of_another_embedder_is_not_touched(tmp_path: Path, config: dict[str, Any]) -> None:
    RetrievalDataModule(**config).prepare_data()
    made = contents(tmp_path / "db")
    config["embedder"]["params"]["model"] = write_clip(tmp_path / "clip2", seed=1)
    with pytest.raises(ValueError, match="clip with fingerprint .*clip2"):
        RetrievalDataModule(**config).prepare_data()
    assert contents(tmp_path / "db") == made


def test_wrong_configs_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="database.*'shardrows'.*'shard_rows'"):
        RetrievalDataModule(**{**config, "database": {**config["database"], "shardrows": 3}})
    with pytest.raises(ValueError, match="database.*'source'"):
        RetrievalDataModule(**{**config, "database": {"path": "db"}})
    with pytest.raises(ValueError, match="k=7.*stored_k=6"):
        RetrievalDataModule(**{**config, "k": 7})
