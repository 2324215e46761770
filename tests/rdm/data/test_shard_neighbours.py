"""Neighbours of pictures in shards at URLs: their tables, and the loader of a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_clip
from shard_server import serving, write_shards

from rdm.data import RetrievalDataModule


def described(folder: Path, shards: str, **params: Any) -> dict[str, Any]:
    """The data section of a model whose pictures and database are these shards."""
    images = {"target": "ldm.data.WebDatasetImages", "params": {"shards": shards, "size": 8, **params}}
    return {
        "batch_size": 4,
        "embedder": {
            "target": "ldm.modules.encoders.modules.OpenClipEmbedder",
            "params": {"model": str(folder.parent / "clip")},
        },
        "database": {"path": str(folder / "db"), "source": images},
        "train": images,
        "k": 2,
        "stored_k": 4,
        "near_duplicate": 2.0,
    }


@pytest.mark.parametrize("drawn", [{}, {"draw_from": 4, "caption_share": 0.5}])
def test_shards_at_urls_have_the_neighbours_that_they_have_on_the_disk(drawn: dict[str, Any], tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards", [9, 7, 8])
    write_clip(tmp_path / "clip")

    def batches(folder: str, shards: str, after: int | None = None) -> list[dict[str, Any]]:
        params = {"index": str(tmp_path / folder / "lists"), "buffer": 4, "lanes": [1, 2]}
        module = RetrievalDataModule(**described(tmp_path / folder, shards, **params), **drawn)
        module.prepare_data()
        loader = module.train_dataloader()
        loader.sampler.set_epoch(1)
        if after is not None:
            loader.load_state_dict({"epoch": 1, "samples": after, "processes": 1})
        return list(loader)

    here = batches("here", str(tmp_path / "shards"))
    with serving(tmp_path / "shards") as server:
        there = batches("there", f"{server.url}/{pattern}")
        resumed = batches("there", f"{server.url}/{pattern}", after=8)
    assert len(here) == len(there) == 6 and len(resumed) == 4
    for one, other in zip((*here, *here[2:]), (*there, *resumed), strict=True):
        assert one["id"] == other["id"]
        for name in ("image", "neighbours", "neighbour_rows"):
            assert torch.equal(one[name], other[name])
