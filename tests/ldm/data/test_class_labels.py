"""Numbers and names of classes: what each kind of data set gives, and that splits agree on them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from ldm.data import HashSplit, ImageFolder, ParquetImages, WebDatasetImages

ROOT = Path(__file__).parents[3]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def labels(dataset: Any) -> list[tuple[int, str, str]]:
    """Number, name and class of every item."""
    items = [dataset[i] for i in range(len(dataset))]
    assert all(type(item["class_label"]) is int for item in items)
    return [(item["class_label"], item["human_label"], item["class_id"]) for item in items]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("n02/a.png", "n02/b.png", "n01/c.png", "n10/d.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(png(9))
    return tmp_path / "pictures"


def write_parquet(file: Path, schema: pa.Schema | None = None, **columns: list[Any]) -> str:
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [png(row) for row in range(rows)], **columns}, schema=schema), file)
    return str(file)


def write_shard(file: Path, *samples: dict[str, str]) -> str:
    with tarfile.open(file, "w") as archive:
        for number, sample in enumerate(samples):
            for extension, content in {"png": png(number), **sample}.items():
                data = content if isinstance(content, bytes) else content.encode()
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(file)


def test_folders_are_numbered_in_sorted_order(folder: Path, tmp_path: Path) -> None:
    assert labels(ImageFolder(str(folder), 4)) == [
        (0, "n01", "n01"), (1, "n02", "n02"), (1, "n02", "n02"), (2, "n10", "n10"),
    ]  # fmt: skip
    (tmp_path / "names.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\nn10 bulbul\n")
    named = labels(ImageFolder(str(folder), 4, class_names=str(tmp_path / "names.txt"), classes=[1, 3]))
    assert named == [(0, "goldfish", "n02"), (0, "goldfish", "n02"), (1, "bulbul", "n10")]  # those kept are numbered


def test_a_list_of_files_is_numbered_like_their_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("n10/d.png\nn01/c.png\n")
    assert labels(ImageFolder(str(folder), 4, files=str(tmp_path / "list.txt"))) == [
        (1, "n10", "n10"),
        (0, "n01", "n01"),
    ]


def test_a_picture_without_a_class_has_the_label_minus_one(folder: Path) -> None:
    (folder / "0.png").write_bytes(png(1))
    assert labels(ImageFolder(str(folder), 4))[0] == (-1, "", "")


def test_a_batch_holds_numbers_and_names(folder: Path) -> None:
    dataset = ImageFolder(str(folder), 4)
    batch = default_collate([dataset[0], dataset[3]])
    assert torch.equal(batch["class_label"], torch.tensor([0, 2])) and batch["human_label"] == ["n01", "n10"]


def test_columns_of_names_and_of_numbers(tmp_path: Path) -> None:
    names = write_parquet(tmp_path / "a.parquet", category=["dog", "cat", None], subcategory=["x", None, None])
    assert labels(ParquetImages(names, 4)) == [(1, "dog/x", "dog/x"), (0, "cat", "cat"), (-1, "", "")]
    numbers = write_parquet(tmp_path / "b.parquet", label=[10, 2, -1])
    assert labels(ParquetImages(numbers, 4)) == [(10, "10", "10"), (2, "2", "2"), (-1, "-1", "-1")]


def test_names_that_hugging_face_writes_beside_numbers(tmp_path: Path) -> None:
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": feature}}).encode()}
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], metadata=about)
    dataset = ParquetImages(write_parquet(tmp_path / "a.parquet", schema, label=[1, 0]), 4)
    assert labels(dataset) == [(1, "dog", "1"), (0, "cat", "0")] and dataset.classes.names == ["cat", "dog"]


def test_all_splits_of_a_file_number_classes_alike(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", category=["b", "a", "c", "c"], split=["train", "train", "val", "val"])
    assert [label for label, _, _ in labels(ParquetImages(file, 4, split="train"))] == [1, 0]
    assert [label for label, _, _ in labels(ParquetImages(file, 4, where={"split": "val"}))] == [2, 2]
    assert [label for label, _, _ in labels(ParquetImages(file, 4, where={"category": ["b", "c"]}))] == [0, 1, 1]


def test_the_parts_of_a_hash_split_number_classes_alike(folder: Path) -> None:
    config = {"target": "ldm.data.ImageFolder", "params": {"root": str(folder), "size": 4}}
    parts = [HashSplit(config, held_out, 2) for held_out in (False, True)]
    found = {item["class_id"]: item["class_label"] for part in parts for item in (part[i] for i in range(len(part)))}
    assert found == {"n01": 0, "n02": 1, "n10": 2}


def test_classes_in_shards(tmp_path: Path) -> None:
    numbers = write_shard(tmp_path / "a.tar", {"cls": "207\n"}, {"cls": "3"}, {})
    assert labels(WebDatasetImages(numbers, 4)) == [(207, "207", "207"), (3, "3", "3"), (-1, "", "")]
    names = write_shard(tmp_path / "b.tar", {"cls": "dog"}, {"json": '{"label": "cat"}'})
    assert labels(WebDatasetImages(names, 4)) == [(1, "dog", "dog"), (0, "cat", "cat")]


def test_a_list_sets_the_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n10\nn02\nn05\nn01\n")
    listed = labels(ImageFolder(str(folder), 4, class_list=str(tmp_path / "classes.txt")))
    assert [label for label, _, _ in listed] == [3, 1, 1, 0]
    file = write_parquet(tmp_path / "a.parquet", category=["b", "a"])
    assert [label for label, _, _ in labels(ParquetImages(file, 4, class_list=["b", "a"]))] == [0, 1]
    shard = write_shard(tmp_path / "a.tar", {"cls": "dog"}, {"cls": "cat"})
    assert [label for label, _, _ in labels(WebDatasetImages(shard, 4, class_list=["dog", "cat"]))] == [0, 1]
    for given, fact in ((["n01", "n02"], "n10"), (["n01", "n01"], "twice")):
        with pytest.raises(ValueError, match=fact):
            ImageFolder(str(folder), 4, class_list=given)[0]
    with pytest.raises(FileNotFoundError, match="none.txt"):
        ImageFolder(str(folder), 4, class_list="none.txt")[0]


def test_the_categories_of_the_emoji_are_classes() -> None:
    config = {"files": str(ROOT / "data/emoji"), "size": 16}
    train, val = (ParquetImages(split=split, **config) for split in ("train", "val"))
    assert train.classes.names == val.classes.names == sorted(train.classes.names)
    item = val[0]
    assert val.classes.names[item["class_label"]] == item["human_label"] == item["class_id"]
