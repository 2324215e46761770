"""Parquet files of photographs from made-up clones: names, captions, licences row by row, and what is left out."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.photographs.clones import main, split_of, write
from ldm.data import ParquetImages

MIT = "MIT License\n\nCopyright (c) somebody\n"


def photograph(file: Path, colour: str = "red") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), colour).save(file)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    clone = tmp_path / "shop"
    for folder in ("train/Fruit/Apple/Granny-Smith", "val/Vegetables/Zucchini", "test/Fruit/Melon/Watermelon",
                   "train/Packages/Milk/Arla-Standard-Milk"):  # fmt: skip
        photograph(clone / "dataset" / folder / "1.jpg")
    (clone / "LICENSE").write_text(MIT)
    return clone


def test_the_names_of_the_grocery_store_are_those_of_folders(shop: Path, tmp_path: Path) -> None:
    assert write("grocery", shop, tmp_path / "out" / "g.parquet", 16) == {
        "written": 4, "without a licence": 0, "unreadable": 0,
    }  # fmt: skip
    found = {row["image"]["path"]: row for row in rows_of(tmp_path / "out" / "g.parquet")}
    apple = found["dataset/train/Fruit/Apple/Granny-Smith/1.jpg"]
    assert apple["name"] == "granny smith apple" and apple["license"] == "MIT" and apple["source"] == "grocery"
    assert apple["caption"] == "a photo of granny smith apple in a grocery store (fruit)"
    names = {row["name"] for row in found.values()}
    assert names == {"granny smith apple", "zucchini", "watermelon", "arla standard milk"}
    picture = Image.open(io.BytesIO(apple["image"]["bytes"]))
    assert picture.size == (16, 16) and np.abs(np.asarray(picture).mean((0, 1)) - [255, 0, 0]).max() < 6
    images = ParquetImages(str(tmp_path / "out" / "g.parquet"), size=16)
    assert len(images) == 4 and images[0]["image"].shape == (3, 16, 16)


def test_clothes_have_their_classes_in_a_table(tmp_path: Path) -> None:
    clone = tmp_path / "clothes"
    for name in "abc":
        photograph(clone / "images" / f"{name}.jpg")
    (clone / "README.md").write_text("The pictures are in the public domain (CC0).")
    lines = ["image,sender_id,label,kids", "a,1,T-Shirt,False", "b,1,Dress,True", "c,1,Not sure,False", "d,1,Hat,False"]
    (clone / "images.csv").write_text("\n".join(lines))
    write("clothing", clone, tmp_path / "c.parquet", 16)
    assert [(row["name"], row["caption"], row["license"]) for row in rows_of(tmp_path / "c.parquet")] == [
        ("t-shirt", "a photo of a t-shirt laid out", "CC0-1.0"),
        ("dress", "a photo of a child dress laid out", "CC0-1.0"),
    ]


def test_each_flower_has_its_own_licence_and_others_are_left_out(tmp_path: Path) -> None:
    clone = tmp_path / "flowers"
    for path in ("roses/1_a.jpg", "roses/2_b.jpg", "daisy/3_c.jpg"):
        photograph(clone / path)
    (clone / "daisy" / "4_d.jpg").write_bytes(b"no picture")
    (clone / "LICENSE.txt").write_text(
        "All images are under licences of Creative Commons\n\nroses/1_a.jpg CC-BY by Ann B - https://example.org/1/\n"
        "daisy/3_c.jpg CC-BY-SA by C - D - https://example.org/3/\ndaisy/4_d.jpg CC-BY by E - https://example.org/4/\n"
    )
    counts = write("flowers", clone, tmp_path / "f.parquet", 16)
    assert counts == {"written": 2, "without a licence": 1, "unreadable": 1}
    assert [tuple(row[key] for key in ("name", "caption", "license", "attribution")) for row in
            rows_of(tmp_path / "f.parquet")] == [
        ("daisy", "a photo of daisy", "CC-BY-SA-2.0", "C - D - https://example.org/3/"),
        ("rose", "a photo of roses", "CC-BY-2.0", "Ann B - https://example.org/1/"),
    ]  # fmt: skip


def test_waste_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    photograph(tmp_path / "t" / "dataset-resized" / "glass" / "glass1.jpg")
    (tmp_path / "t" / "LICENSE").write_text(MIT)
    words = ["photographs", "trashnet", str(tmp_path / "t"), "--output", str(tmp_path / "t.parquet"), "--size", "8"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert "t.parquet: 1 written, 0 without a licence, 0 unreadable" in capsys.readouterr().out
    (row,) = rows_of(tmp_path / "t.parquet")
    assert (row["name"], row["caption"]) == ("glass", "a photo of discarded glass")


def test_without_a_licence_nothing_is_written(shop: Path, tmp_path: Path) -> None:
    (shop / "LICENSE").write_text("All rights reserved")
    with pytest.raises(ValueError, match="no photograph of .* has a licence: got none of grocery"):
        write("grocery", shop, tmp_path / "g.parquet", 16)
    assert not list(tmp_path.glob("*.parquet*"))
    with pytest.raises(FileNotFoundError, match="no picture in .*; give the folder of the clone"):
        write("trashnet", tmp_path / "none", tmp_path / "g.parquet", 16)
    for kind in ("flowers", "clothing"):
        with pytest.raises(FileNotFoundError, match=r"no (LICENSE.txt|images.csv) in"):
            write(kind, shop, tmp_path / "g.parquet", 16)


def test_a_tenth_of_all_paths_is_held_out() -> None:
    splits = [split_of(f"dataset/{number}.jpg") for number in range(2000)]
    assert 150 < splits.count("val") < 250 and set(splits) == {"train", "val"}
