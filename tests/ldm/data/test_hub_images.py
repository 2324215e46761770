"""Data sets by name: columns, classes, streams that a resumed run continues, and databases of them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pictures import QUIET, ProjectionEmbedder
from PIL import Image
from small_models import VQ

from ldm.data import DataModule, HubImages, HubStream
from ldm.util import instantiate_from_config
from rdm.data.query_dataset import QueryDataset
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.rows import RetrievalDatabase

datasets = pytest.importorskip("datasets")
ROWS = 20


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of `datasets` is the test's own, and there is no network."""
    for name in ("HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setattr(f"datasets.config.{name}", str(tmp_path / "cache") if "CACHE" in name else True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def table(**columns: Any) -> Any:
    """Rows whose picture has the shade of their number, times ten."""
    pictures = [{"bytes": png(10 * row), "path": f"{row}.png"} for row in range(ROWS)]
    kinds = {
        "img": datasets.Image(),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["dog", "cat"]),
        "key": datasets.Value("string"),
    }
    content = {
        "img": pictures,
        "text": [f"shade {row}" for row in range(ROWS)],
        "label": [row % 2 for row in range(ROWS)],
        "key": [f"k{row}" for row in range(ROWS)],
        **columns,
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A local folder in the form of the hub's data sets: two Parquet files of a split."""
    rows = table()
    for part in range(2):
        file = tmp_path / "shades" / "data" / f"train-0000{part}-of-00002.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.select(range(part * ROWS // 2, (part + 1) * ROWS // 2)).to_parquet(file)
    return str(tmp_path / "shades")


def shade(item: dict[str, Any]) -> int:
    """The number of the row that a picture is of."""
    return round(float((item["image"].mean() + 1) * 127.5 / 10))


def test_a_row_has_picture_texts_class_and_a_stable_id(folder: str) -> None:
    images = HubImages(folder, 8)
    assert len(images) == ROWS and [shade(images[row]) for row in range(ROWS)] == list(range(ROWS))
    item = images[13]
    assert (item["caption"], item["class_id"], item["class_label"], item["human_label"]) == (
        "shade 13",
        "cat",
        1,
        "cat",
    )
    assert item["id"] == "shades/train/13" and item["uri"] == f"{folder}#train/13"
    assert images.classes.names == ["dog", "cat"]
    named = HubImages(folder, 8, columns={"id": "key", "caption": "key", "image": "img"}, split="train[5:]")
    assert len(named) == 15 and (named[0]["id"], named[0]["caption"], shade(named[0])) == ("k5", "k5", 5)
    assert HubImages(folder, [4, 8], channels=1)[0]["image"].shape == (1, 4, 8)


def test_other_local_forms(tmp_path: Path) -> None:
    """A folder of `save_to_disk`, a dictionary of splits, and class folders of files."""
    table().save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(val=table()).save_to_disk(tmp_path / "splits")
    for name in ("a", "b"):
        (tmp_path / "files" / "train" / name).mkdir(parents=True)
        (tmp_path / "files" / "train" / name / "1.png").write_bytes(png(70))
    assert shade(HubImages(str(tmp_path / "saved"), 8)[3]) == 3
    assert shade(HubImages(str(tmp_path / "splits"), 8, split="val")[4]) == 4
    files = HubImages(str(tmp_path / "files"), 8)
    assert [(item["class_id"], shade(item)) for item in (files[0], files[1])] == [("a", 7), ("b", 7)]
    assert shade(HubStream(str(tmp_path / "saved"), 8, length=20)[9]) == 9


def test_classes_that_are_numbers_or_words(tmp_path: Path) -> None:
    kinds = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"), word=datasets.Value("string"))
    content = {"image": [{"bytes": png(0), "path": None}] * 3, "label": [5, 0, -1], "word": ["pear", "fig", None]}
    datasets.Dataset.from_dict(content, features=kinds).save_to_disk(tmp_path / "saved")
    numbers = HubImages(str(tmp_path / "saved"), 8)
    assert [numbers[row]["class_label"] for row in range(3)] == [5, 0, -1]
    words = HubImages(str(tmp_path / "saved"), 8, columns={"class_id": "word"})
    assert [words[row]["class_label"] for row in range(3)] == [1, 0, -1]
    stream = HubStream(str(tmp_path / "saved"), 8, length=3, columns={"class_id": "word"})
    with pytest.raises(ValueError, match="column word does not state which classes there are; set class_list"):
        stream[0]
    listed = HubStream(str(tmp_path / "saved"), 8, length=3, columns={"class_id": "word"}, class_list=["pear", "fig"])
    assert [listed[row]["class_label"] for row in range(3)] == [0, 1, -1]


def test_a_broken_picture_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    broken = [{"bytes": b"no picture" if row == 2 else png(10 * row), "path": None} for row in range(ROWS)]
    table(img=broken).save_to_disk(tmp_path / "saved")
    for images in (HubImages(str(tmp_path / "saved"), 8), HubStream(str(tmp_path / "saved"), 8, length=ROWS)):
        assert [shade(images[row]) for row in range(5)] == [0, 1, 3, 3, 4]
    with pytest.raises(ValueError, match="got 1 broken images, expected at most max_broken=0"):
        HubStream(str(tmp_path / "saved"), 8, length=ROWS, max_broken=0)[2]


def loader(folder: str, **options: Any) -> Any:
    """The training loader over a stream."""
    params = {"name": folder, "size": 8, "length": ROWS, "buffer": 6}
    data = DataModule(3, train={"target": "ldm.data.HubStream", "params": params}, **options)
    data.setup("fit")
    return data.train_dataloader()


def batches(stream: Any) -> list[list[str]]:
    return [batch["caption"] for batch in stream]


def test_a_stream_has_an_order_of_seed_and_epoch_and_the_same_for_any_number_of_workers(folder: str) -> None:
    first = loader(folder)
    one = batches(first)
    assert len(first) == len(one) == 6 and len({name for batch in one for name in batch}) == 18
    first.sampler.set_epoch(1)
    two = batches(first)
    assert two != one == batches(loader(folder, num_workers=2)) != batches(loader(folder, seed=1))
    assert batches(loader(folder, shuffle=False))[0] == ["shade 0", "shade 1", "shade 2"]
    pictures = next(iter(loader(folder, shuffle=False)))["image"]
    assert [shade({"image": each}) for each in pictures] == [0, 1, 2]


@pytest.mark.parametrize(("epoch", "num_workers"), [(0, 0), (1, 0), (3, 0), (1, 1)])
def test_a_stream_continues_after_the_batches_it_delivered(folder: str, epoch: int, num_workers: int) -> None:
    uninterrupted, begun = loader(folder), loader(folder)
    for each in (uninterrupted, begun):
        each.sampler.set_epoch(epoch)
    whole, stream = batches(uninterrupted), iter(begun)
    assert [next(stream)["caption"] for _ in range(2)] == whole[:2]
    resumed = loader(folder, num_workers=num_workers)
    resumed.load_state_dict(begun.state_dict())
    assert batches(resumed) == whole[2:]


def test_ranks_share_a_stream(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        seen += [name for batch in batches(loader(folder, shuffle=False)) for name in batch]
    assert len(seen) == len({*seen}) == 18


class Codes(pl.LightningModule):
    """A first stage that learns to reconstruct, and remembers what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = instantiate_from_config(VQ)
        self.seen: list[list[str]] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.seen.append(batch["caption"])
        return (self.stage.decode(self.stage.encode(batch["image"])) - batch["image"]).square().mean()

    def validation_step(self, batch: Any, _: int) -> None:
        assert batch["image"].shape[1:] == (3, 8, 8)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def test_a_first_stage_trains_on_a_stream_and_a_resumed_run_sees_what_it_would_have_seen(
    folder: str, tmp_path: Path
) -> None:
    def fit(name: str, resume: Path | None = None) -> list[list[str]]:
        images = {"target": "ldm.data.HubStream", "params": {"name": folder, "size": 8, "length": ROWS, "buffer": 6}}
        saver = pl.callbacks.ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        model = Codes()
        pl.Trainer(
            max_steps=10,
            logger=False,
            callbacks=[saver],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, datamodule=DataModule(3, train=images, validation=images), ckpt_path=resume)
        return model.seen

    whole = fit("whole")
    assert len(whole) == 10
    for step in (4, 6, 8):  # within an epoch of six batches, and at its end
        assert fit(f"resumed-{step}", tmp_path / "whole" / f"step={step}.ckpt") == whole[step:]


def test_a_database_of_rows_is_built_and_its_pictures_are_cut_out_again(folder: str, tmp_path: Path) -> None:
    source = {"target": "ldm.data.HubImages", "params": {"name": folder, "size": 8}}
    build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)
    database = RetrievalDatabase.open(tmp_path / "db")
    assert len(database) == ROWS
    assert [int(patch[0, 0, 0]) for patch in database.patches([3, 17])] == [30, 170]
    (row,) = database.metadata([17])
    assert (row["image_id"], row["caption"], row["class_id"]) == ("shades/train/17", "shade 17", "cat")


def test_a_stream_is_refused_where_pictures_are_read_in_any_order(folder: str, tmp_path: Path) -> None:
    source = {"target": "ldm.data.HubStream", "params": {"name": folder, "size": 8, "length": ROWS}}
    with pytest.raises(ValueError, match="database .* got a stream of .* use HubImages"):
        build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)
    with pytest.raises(ValueError, match="images with neighbours: got a stream"):
        QueryDataset(HubStream(folder, 8, length=ROWS), "nowhere", "nowhere")


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        (HubImages, {"split": "val"}, 'Unknown split "val". Should be one of'),
        (HubStream, {"split": "val", "length": 1}, "Bad split: val"),
        (HubImages, {"columns": {"caption": "name"}}, "has no column 'name', it has img, text, label, key"),
        (HubImages, {"columns": {"image": "text"}}, "column 'text' holds no pictures, expected img"),
        (HubImages, {"columns": {"class": "label"}}, "unknown key 'class'; did you mean"),
        (HubImages, {"name": "nobody/nothing"}, "the hub cannot be reached; this would have read its split 'train'"),
        (HubStream, {"name": "nobody/nothing", "length": 1}, "the hub cannot be reached; this would have read"),
        (HubImages, {"name": "/no/such/folder"}, "correct name or revision"),
        (HubStream, {}, "does not state how many rows split 'train' has; set length"),
        (HubStream, {"length": 0}, "got length=0, buffer=1000"),
        (HubStream, {"length": 20, "keep": True}, "and keep: false"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(kind: Any, params: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        kind(**{"name": folder, "size": 8, **params})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_stream_shorter_than_its_length_is_an_error(folder: str) -> None:
    images = HubStream(folder, 8, length=ROWS + 1)
    with pytest.raises(ValueError, match=f"the stream ended after {ROWS} rows, expected length={ROWS + 1}"):
        images[ROWS]


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs datasets: pip install 'retrieval-augmented-diffusion\[datasets\]'"):
        HubImages("owner/name", 8)
