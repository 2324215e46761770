"""Image datasets: real files in, the same pictures and metadata out; broken ones are named and skipped."""

from __future__ import annotations

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shard_server import write_shard

from ldm.data import ImageFolder, ParquetImages, WebDatasetImages
from ldm.data.decode import decode_image

EMOJI = Path(__file__).parents[3] / "data" / "emoji"
RED, GREEN = (255, 0, 0), (0, 255, 0)


def png(colour: tuple[int, ...] = RED, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A picture of one colour, encoded."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def is_colour(image: torch.Tensor, colour: tuple[int, ...]) -> bool:
    """Whether every pixel of `[3, H, W]` in [-1, 1] has this 8-bit colour."""
    expected = torch.tensor(colour, dtype=torch.float32)[:, None, None] / 127.5 - 1.0
    return bool((image - expected).abs().max() < 1e-5)


def test_kept_items_are_decoded_once_and_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept = (ParquetImages(str(EMOJI / "noto.parquet"), 64, keep=keep) for keep in (False, True))
    first = kept[3]
    first["id"] = "changed by who asked"
    monkeypatch.setattr(kept, "read", lambda index: pytest.fail(f"{index} is read again"))
    again = kept[3]
    expected = plain[3]
    assert torch.equal(again.pop("image"), expected.pop("image"))
    assert again == expected and expected.items() > plain.metadata(3).items()


def test_decoding_keeps_the_pixels_of_a_picture_that_has_the_size() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    image = decode_image(buffer.getvalue(), 8)
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert np.array_equal(((image + 1) * 127.5).round().permute(1, 2, 0).numpy(), pixels)


def test_decoding_crops_the_centre_of_the_longer_side() -> None:
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, :4] = pixels[:, 8:] = GREEN
    pixels[:, 4:8] = RED
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert is_colour(decode_image(buffer.getvalue(), 4), RED)


def test_decoding_shrinks_with_antialiasing() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[::2] = 255  # one-pixel lines average to grey; without antialiasing they would stay black or white
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 8).abs().max() < 0.1


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), RED),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", (51,), (51, 51, 51)),
        ("I;16", (51 * 257,), (51, 51, 51)),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode: str, colour: Any, expected: tuple[int, int, int]) -> None:
    value = colour[0] if len(colour) == 1 else colour
    assert is_colour(decode_image(png(value, mode=mode), 8), expected)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_bombs_and_other_bytes_are_refused() -> None:
    bomb = png((0,), size=(10_000, 9_000), mode="L")
    with pytest.raises(ValueError, match="10000x9000 pixels"):
        decode_image(bomb, 8)
    for data in (b"", b"no picture", png(size=(64, 64))[:60]):
        with pytest.raises(ValueError, match="unreadable image"):
            decode_image(data, 8)


def test_folder_gives_class_caption_and_sorted_paths(tmp_path: Path) -> None:
    for name, colour in (("cat/2.png", RED), ("cat/1.PNG", GREEN), ("dog/1.png", RED), ("top.png", GREEN)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(colour))
    (tmp_path / "cat" / "2.txt").write_text("a red cat\n", encoding="utf-8")
    images = ImageFolder(str(tmp_path), 4)
    assert [item["id"] for item in images] == ["cat/1.PNG", "cat/2.png", "dog/1.png", "top.png"]
    assert [images.metadata(i)["class_id"] for i in range(4)] == ["cat", "cat", "dog", ""]
    assert images[1]["caption"] == "a red cat" and images[0]["caption"] == ""
    assert is_colour(images[1]["image"], RED) and images[1]["image"].shape == (3, 4, 4)
    assert images[-1]["uri"] == (tmp_path / "top.png").as_posix()
    with pytest.raises(IndexError, match="4 images"):
        images[4]


def test_broken_images_are_named_and_skipped_up_to_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"broken" if i in (1, 2, 4) else png())
    images = ImageFolder(str(tmp_path), 8, max_broken=2)
    with caplog.at_level(logging.WARNING):
        assert images[1]["id"] == "3.png"
        assert images[2]["id"] == "3.png"
    assert [record.message.split(":")[0].split("/")[-1] for record in caplog.records] == ["1.png", "2.png"]
    with pytest.raises(ValueError, match=r"3 broken.*max_broken=2.*1\.png.*2\.png.*4\.png"):
        images[4]


def test_a_folder_of_broken_images_is_an_error_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images.*a\.png"):
        ImageFolder(str(tmp_path), 8, max_broken=10)[0]


def test_missing_sources_are_one_line_errors_that_name_them(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    attempts: list[Any] = [
        lambda: ImageFolder(gone, 8),
        lambda: ImageFolder(str(tmp_path), 8),
        lambda: ParquetImages(gone + ".parquet", 8),
        lambda: ParquetImages([str(EMOJI / "noto.parquet"), gone + "*.parquet"], 8),
        lambda: WebDatasetImages(gone + "-{0..1}.tar", 8),
    ]
    for attempt in attempts:
        with pytest.raises(FileNotFoundError, match=tmp_path.name) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="size"):
        ImageFolder(str(tmp_path), 0)


def test_emoji_rows_carry_the_whole_contract() -> None:
    images = ParquetImages(str(EMOJI / "noto.parquet"), 64)
    assert len(images) == 1566
    index = next(i for i in range(len(images)) if images.metadata(i)["concept"] == "1f98b")
    item = images[index]
    assert item["image"].shape == (3, 64, 64) and item["image"].min() >= -1 and item["image"].max() <= 1
    assert item["image"][:, 0, 0].tolist() == [1.0, 1.0, 1.0]
    expected = {
        "id": "noto/1f98b",
        "caption": "butterfly",
        "class_id": "animals-nature/animal-bug",
        "uri": f"noto.parquet#{index}",
        "licence": "Apache-2.0",
        "concept": "1f98b",
        "style": "noto",
    }
    assert {key: item[key] for key in expected} == expected
    assert item["attribution"].startswith("Noto Emoji") and "insect" in item["keywords"].split(", ")


def test_emoji_filters_agree_with_the_published_counts() -> None:
    everything = str(EMOJI / "*.parquet")
    assert len(ParquetImages(everything, 64, split="train")) == 12_544
    held_out = ParquetImages(str(EMOJI), 64, split="val", where={"style": ["noto", "fluent"]})
    assert len(held_out) == 2 * 139
    assert {held_out.metadata(i)["style"] for i in range(len(held_out))} == {"noto", "fluent"}
    ids = {held_out.metadata(i)["id"] for i in range(len(held_out))}
    assert len(ids) == len(held_out)
    row = int(held_out.uri(0).split("#")[1])
    whole = ParquetImages(str(EMOJI / "fluent.parquet"), 64)
    assert torch.equal(whole[row]["image"], held_out[0]["image"])


def test_rows_are_left_out_by_the_values_of_a_column() -> None:
    wanted = {"files": str(EMOJI / "noto.parquet"), "size": 64, "split": "val"}
    whole = ParquetImages(**wanted)
    names = [whole.metadata(i)["caption"] for i in range(len(whole))]
    rest = ParquetImages(**wanted, without={"name": names[:2]})
    assert [rest.metadata(i)["caption"] for i in range(len(rest))] == [n for n in names if n not in names[:2]]
    category = whole.metadata(0)["class_id"].split("/")[0]
    others = ParquetImages(**wanted, without={"category": category})
    assert 0 < len(others) < len(whole)
    assert category not in {name.split("/")[0] for name in others.class_ids()}
    with pytest.raises(ValueError, match=r"no row with .* and without .*; correct `split`, `where` or `without`"):
        ParquetImages(**wanted, where={"name": names[0]}, without={"name": names[0]})
    with pytest.raises(ValueError, match=r"no column nmae"):
        ParquetImages(**wanted, without={"nmae": "x"})


def test_parquet_survives_pickling_for_workers() -> None:
    images = ParquetImages(str(EMOJI / "openmoji-line.parquet"), 32, split="val")
    again = pickle.loads(pickle.dumps(images))  # noqa: S301 - what a spawned loader worker does
    assert again.metadata(5) == images.metadata(5)
    assert torch.equal(again[5]["image"], images[5]["image"])


def test_parquet_reads_plain_bytes_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "green.png").write_bytes(png(GREEN))
    (tmp_path.parent / "outside.png").write_bytes(png(GREEN))
    cells = [{"bytes": png(RED), "path": None}, {"bytes": None, "path": "green.png"}]
    cells.append({"bytes": None, "path": "../outside.png"})
    pq.write_table(pa.table({"image": cells, "label": [7, 8, 9], "text": ["a", None, "c"]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": [png(GREEN)]}), tmp_path / "y.parquet")
    images = ParquetImages([str(tmp_path / "x.parquet"), str(tmp_path / "y.parquet")], 8)
    assert [images.metadata(i)["id"] for i in range(4)] == ["x/0", "x/1", "x/2", "y/0"]
    assert [images.metadata(i)["class_id"] for i in range(4)] == ["7", "8", "9", ""]
    assert [images.metadata(i)["caption"] for i in range(4)] == ["a", "", "c", ""]
    assert is_colour(images[0]["image"], RED) and is_colour(images[1]["image"], GREEN)
    assert images[2]["id"] == "y/0"  # a path that leaves the folder is not followed


def test_parquet_errors_name_the_remedy(tmp_path: Path) -> None:
    noto = str(EMOJI / "noto.parquet")
    with pytest.raises(ValueError, match=r"stile.*image, concept"):
        ParquetImages(noto, 64, where={"stile": "noto"})
    with pytest.raises(ValueError, match=r"'test'.*noto.parquet"):
        ParquetImages(noto, 64, split="test")
    (tmp_path / "z.parquet").write_bytes(b"PAR?")
    with pytest.raises(ValueError, match=r"z\.parquet"):
        ParquetImages(str(tmp_path / "z.parquet"), 64)


def test_shards_give_pictures_with_their_neighbouring_members(tmp_path: Path) -> None:
    about = json.dumps({"caption": "from json", "url": "u", "license": "CC0", "author": None}).encode()
    first = {"a.png": png(RED), "a.txt": b"red one\n", "a.cls": b"3", "b.json": about, "b.png": png(GREEN)}
    write_shard(tmp_path / "s-08.tar", first)
    write_shard(tmp_path / "s-09.tar", {"only.txt": b"no picture", "sub/c.png": png(RED), "sub/d.png": b"broken"})
    images = WebDatasetImages(str(tmp_path / "s-{08..09}.tar"), 8)
    assert [images.metadata(i)["id"] for i in range(len(images))] == [
        "s-08/a",
        "s-08/b",
        "s-09/sub/c",
        "s-09/sub/d",
    ]
    assert (images[0]["caption"], images[0]["class_id"], images[0]["uri"]) == ("red one", "3", "s-08.tar#a")
    b = images[1]
    assert (b["caption"], b["uri"], b["licence"], b["attribution"]) == ("from json", "u", "CC0", "")
    assert is_colour(b["image"], GREEN) and is_colour(images[2]["image"], RED)
    assert images[3]["id"] == "s-08/a"
    assert len(WebDatasetImages(str(tmp_path), 8)) == 4


def test_shards_that_are_no_plain_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"x\.tar"):
        WebDatasetImages(str(tmp_path / "x.tar"), 8)
    write_shard(tmp_path / "y.tar", {"a.txt": b"words"})
    with pytest.raises(ValueError, match=r"y\.tar"):
        WebDatasetImages(str(tmp_path / "y.tar"), 8)
