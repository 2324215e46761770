"""Shards that are read one after the other, also at URLs: their lists, their order, and what a server may do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_server import Server, serving, write_shard, write_shards

from ldm.data import DataModule, WebDatasetImages, file_parts
from ldm.data.file_parts import UnreachableError
from ldm.data.shard_order import ShardOrder

SIZES = [9, 14, 7, 0, 12, 10]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", [size for size in SIZES if size])
    return tmp_path / "shards"


def order_of(sizes: list[int], buffer: int = 3, devices: int = 2, workers: int = 2) -> ShardOrder:
    return ShardOrder(sizes, buffer, devices, workers)


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
@pytest.mark.parametrize("lanes", [(1, 1), (2, 2), (4, 4), (7, 1)])
def test_an_order_has_every_sample_once_and_differs_between_epochs(lanes: tuple[int, int], batch: int) -> None:
    order = order_of(SIZES, devices=lanes[0], workers=lanes[1])
    first, second = order.of_epoch(0, 0, batch), order.of_epoch(0, 1, batch)
    assert sorted(first) == sorted(second) == list(range(sum(SIZES)))
    assert (first != second).any() and (first == order.of_epoch(0, 0, batch)).all()
    assert (first != order.of_epoch(1, 0, batch)).any()


def test_a_lane_reads_one_shard_after_the_other_but_for_its_buffer() -> None:
    order = order_of([100] * 4, buffer=10, devices=1, workers=1).of_epoch(0, 0, 8)
    shards, places = np.divmod(order, 100)
    starts = {int(shard): int(np.flatnonzero(shards == shard).min()) // 100 * 100 for shard in range(4)}
    first = sorted(range(4), key=lambda shard: np.flatnonzero(shards == shard).mean())
    natural = np.concatenate([np.arange(100) + 100 * shard for shard in first])
    moved = np.abs(np.argsort(natural)[order] - np.arange(400))
    assert 5 < moved.max() <= 20 and starts.keys() == set(range(4))  # moved in its lane, and among the rest
    assert (order != natural).mean() > 0.8 and places.max() == 99


def test_devices_and_loader_processes_read_shards_of_their_own() -> None:
    sizes, batch = [50] * 12, 8
    order = order_of(sizes, devices=4, workers=3).of_epoch(3, 5, batch)
    whole = order[: 50 // 2 // 3 * 3 * batch]  # before lanes end
    readers: dict[tuple[int, int], set[int]] = {}
    for place, number in enumerate(whole.tolist()):
        readers.setdefault((place % 4, place // batch % 3), set()).add(number // 50)
    assert len(readers) == 12 and sum(map(len, readers.values())) == len(set().union(*readers.values()))


def test_any_number_of_devices_sees_the_same_batches() -> None:
    from ldm.data.datamodule import ResumableSampler

    class Pictures:
        order = order_of(SIZES, devices=2)

        def __len__(self) -> int:
            return sum(SIZES)

    def batches(devices: int, start: int = 0) -> list[list[int]]:
        samplers = [
            ResumableSampler(Pictures(), 8 // devices, num_replicas=devices, rank=rank, drop_last=True)  # type: ignore[arg-type]
            for rank in range(devices)
        ]
        for sampler in samplers:
            sampler.start = start // devices
        dealt = zip(*(list(sampler) for sampler in samplers), strict=True)
        numbers = [number for each in dealt for number in each]
        return [numbers[place : place + 8] for place in range(0, len(numbers) - 7, 8)]

    assert batches(1) == batches(2) == batches(4) and len(batches(1)) == 6
    assert batches(2, start=24) == batches(1)[3:]


def test_a_resumed_loader_goes_on_at_the_exact_picture(folder: Path) -> None:
    def data(workers: int) -> DataModule:
        params = {"shards": str(folder), "size": 8, "buffer": 4, "lanes": [1, 2]}
        config = {"target": "ldm.data.WebDatasetImages", "params": params}
        return DataModule(4, train=config, num_workers=workers)

    loader = data(0).train_dataloader()
    loader.sampler.set_epoch(2)
    whole = [batch["id"] for batch in loader]
    assert len(whole) == 13 and len({name for batch in whole for name in batch}) == 52
    for workers in (0, 2):
        begun = data(workers).train_dataloader()
        begun.sampler.set_epoch(2)
        iterator = iter(begun)
        seen = [next(iterator)["id"] for _ in range(5)]
        resumed = data(workers).train_dataloader()
        resumed.load_state_dict(begun.state_dict())
        assert seen + [batch["id"] for batch in resumed] == whole


def test_pictures_at_urls_are_those_on_the_disk(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as server:
        there = WebDatasetImages(f"{server.url}/s-{{00..04}}.tar", 8, index=str(tmp_path / "lists"))
        here = WebDatasetImages(str(folder), 8)
        assert len(there) == len(here) == 52 and here.order is None
        assert there.order is not None and there.order.buffer == 1000
        for number in range(52):
            one, other = there[number], here[number]
            assert torch.equal(one.pop("image"), other.pop("image")) and one == other
        assert server.asked == dict.fromkeys(server.asked, 1)  # one block holds such a shard
        before = server.asked.copy()
        again = WebDatasetImages([f"{server.url}/s-{{00..04}}.tar"], 8, index=str(tmp_path / "lists"))
        assert [again.id_of(number) for number in range(52)] == [here.id_of(number) for number in range(52)]
        assert server.asked == before  # the lists are there


def test_blocks_are_fetched_once_in_the_order_of_training(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(file_parts, "BLOCK", 1024)
    monkeypatch.setattr(file_parts, "_BLOCKS", 24)
    with serving(folder) as server:
        params = {"shards": f"{server.url}/s-{{00..04}}.tar", "size": 8, "index": str(tmp_path / "i"), "buffer": 8}
        data = DataModule(4, train={"target": "ldm.data.WebDatasetImages", "params": {**params, "lanes": [1, 1]}})
        loader = data.train_dataloader()
        server.asked.clear()
        loader.dataset._parts._open.clear()  # type: ignore[attr-defined]
        assert len(list(loader)) == 13
        blocks = sum(-(-file.stat().st_size // 1024) for file in folder.iterdir())
        assert 0.5 * blocks < server.asked.total() <= 1.1 * blocks


def served(server: Server, lists: Path) -> WebDatasetImages:
    return WebDatasetImages(f"{server.url}/s-{{00..04}}.tar", 8, index=str(lists), max_broken=0)


def test_a_request_that_fails_is_repeated_and_is_no_broken_picture(
    folder: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(file_parts, "_WAITS", (0.01, 0.01))
    with serving(folder) as server:
        images = served(server, tmp_path / "lists")
        images._parts._open.clear()
        server.fails = 2
        with caplog.at_level(logging.WARNING):
            assert images[0]["id"] == "s-00/0000"
        assert caplog.text.count("trying again in") == 2
        images._parts._open.clear()
        server.fails = 100
        with pytest.raises(UnreachableError, match="when it can be reached, the same command continues") as caught:
            images[0]
        assert "\n" not in str(caught.value) and server.url in str(caught.value)
        server.fails = 0
        assert images[0]["id"] == "s-00/0000"  # nothing counts as broken
        (folder / "s-00.tar").unlink()
        images._parts._open.clear()
        with pytest.raises(
            UnreachableError, match=r"s-00\.tar cannot be read: there is no such file; correct its name"
        ):
            images[0]
    images._parts._open.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(UnreachableError, match="when it can be reached"):
        images[20]  # nobody answers any more
    assert "s-01.tar: " in caplog.text and "onnect" in caplog.text


def test_a_server_that_gives_whole_files_only_is_refused(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with serving(folder) as server:
        monkeypatch.setattr(file_parts, "BLOCK", 1024)
        server.parts = False
        with pytest.raises(
            (UnreachableError, ValueError), match=r"s-00\.tar cannot be read: .*; give one on a server that does"
        ) as caught:
            served(server, tmp_path / "lists")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("nonsense://x/s.tar", "expected a URL that fsspec reads"), ("s3://x/s.tar", "s3fs")]
)
def test_a_url_of_an_unknown_kind_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        WebDatasetImages(name, 8, index=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_url_needs_a_folder_for_lists() -> None:
    with pytest.raises(ValueError, match="set index to a folder"):
        WebDatasetImages("http://127.0.0.1:9/s-{00..04}.tar", 8)


def test_lists_are_made_once_and_belong_to_their_shards(folder: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    assert len(WebDatasetImages(str(folder), 8, index=str(lists))) == 52
    assert sorted(file.name for file in lists.iterdir()) == [f"s-{number:02d}.parquet" for number in range(5)]
    (lists / "s-01.parquet").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in lists.iterdir()}
    assert len(WebDatasetImages(str(folder), 8, index=str(lists))) == 52
    assert {name: (lists / name).stat().st_mtime_ns for name in times} == times
    write_shard(folder / "s-02.tar", {"a.png": b"another"})
    with pytest.raises(ValueError, match=r"s-02\.parquet is the list of .* delete it"):
        WebDatasetImages(str(folder), 8, index=str(lists))
    (lists / "s-02.parquet").write_bytes(b"no list")
    with pytest.raises(ValueError, match=r"s-02\.parquet is no list of a shard .*delete it"):
        WebDatasetImages(str(folder), 8, index=str(lists))


def test_lanes_that_do_not_suit_the_readers_are_said(folder: Path, caplog: Any) -> None:
    def warned(workers: int, **params: Any) -> str:
        caplog.clear()
        config = {"target": "ldm.data.WebDatasetImages", "params": {"shards": str(folder), "size": 8, **params}}
        DataModule(4, train=config, num_workers=workers).train_dataloader()
        return caplog.text

    assert "lanes: got [4, 4] and 5 shards for 1 devices with 3 loader processes each" in warned(3, buffer=2)
    assert not warned(2, buffer=2) and not warned(3)
    with pytest.raises(ValueError, match=r"got lanes=\[2\], buffer=None"):
        warned(0, lanes=[2])
