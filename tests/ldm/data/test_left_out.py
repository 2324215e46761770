"""What of folders and pictures is not read is said; links to folders are followed."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ldm.data import ImageFolder, WebDatasetImages
from rdm.retrieval.builder.read_ahead import ChunkReader
from rdm.retrieval.patches.policy import Patches


def save(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def animated(path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])


def test_links_to_folders_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    save(root / "a" / "1.png")
    save(elsewhere / "deep" / "2.png")
    save(elsewhere / "3.png")
    (root / "b").symlink_to(elsewhere)
    (root / "4.png").symlink_to(elsewhere / "3.png")
    with caplog.at_level(logging.INFO):
        data = ImageFolder(str(root), 8)
    assert data.names == ["4.png", "a/1.png", "b/3.png", "b/deep/2.png"]
    assert data[3]["class_id"] == "b" and data.uri(3) == f"{root}/b/deep/2.png"
    assert f"1 links to folders are read, too, such as {root}/b" in caplog.text
    (tmp_path / "whole").symlink_to(root)
    assert ImageFolder(str(tmp_path / "whole"), 8).names == data.names


def test_links_that_lead_nowhere_or_back_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "lost.png").symlink_to(tmp_path / "none.png")
    assert ImageFolder(str(tmp_path), 8).names == ["a/1.png"]
    assert f"3 links lead nowhere, or back to a folder above them, such as {tmp_path}/a/back" in caplog.text
    caplog.clear()
    for name in ("back", "self", "../lost.png"):
        (tmp_path / "a" / name).unlink()
    ImageFolder(str(tmp_path), 8)
    assert not caplog.text


def test_pictures_of_other_formats_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "1.png")
    for name in ("2.heic", "3.HEIC", "4.avif", "1.txt", "notes.md"):
        (tmp_path / name).touch()
    assert ImageFolder(str(tmp_path), 8).names == ["1.png"]
    assert "left out: 1 .avif, 2 .heic" in caplog.text and "txt" not in caplog.text


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.tif", "TIFF"), ("a.webp", "WEBP"), ("a.png", "PNG")])
def test_pages_that_are_not_read_are_said_once(
    name: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    animated(tmp_path / name, kind)
    animated(tmp_path / f"b{name}", kind)
    data = ImageFolder(str(tmp_path), 8)
    assert data[0]["image"][0].mean() > 0.8 and data[1]["image"][0].mean() > 0.8  # the first page is red
    assert caplog.text.count("3 pages, of which only the first is read") == 1 and f"{tmp_path}/{name}" in caplog.text
    caplog.clear()
    reader = ChunkReader(data, Patches(), [range(2)])
    assert len(reader[0].entries) == 2 and caplog.text.count("3 pages") == 1


def test_pictures_of_one_page_are_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("GIF", "TIFF", "WEBP", "PNG", "JPEG"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"a.{kind.lower()}", kind)
    assert len([item for item in ImageFolder(str(tmp_path), 8)]) == 5
    assert not caplog.text


def test_further_pictures_of_a_sample_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.png", "1.left.png", "1.jpg", "2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    assert len(WebDatasetImages(str(tmp_path / "a.tar"), 8)) == 2
    assert "1 samples have several pictures, of which the first is read, such as 1 (png, jpg)" in caplog.text


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    save(tmp_path / "root" / "a" / "1.png")
    (tmp_path / "root" / "a" / "1.txt").write_text("a größe", encoding="utf-8-sig")
    (tmp_path / "list.txt").write_text("a/1.png\n", encoding="utf-8-sig")
    (tmp_path / "names.txt").write_text("a dog, domestic dog\n", encoding="utf-8-sig")
    data = ImageFolder(
        str(tmp_path / "root"), 8, files=str(tmp_path / "list.txt"), class_names=str(tmp_path / "names.txt")
    )
    assert data[0]["id"] == "a/1.png" and data[0]["caption"] == "a größe"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, text in (("1.txt", "a größe"), ("1.cls", "7"), ("1.json", '{"licence": "MIT"}')):
            member, content = tarfile.TarInfo(name), text.encode("utf-8-sig")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        archive.add(tmp_path / "root" / "a" / "1.png", "1.png")
    entry = WebDatasetImages(str(tmp_path / "a.tar"), 8)[0]
    assert (entry["caption"], entry["class_id"], entry["licence"]) == ("a größe", "7", "MIT")


def test_a_broken_picture_is_named_and_no_object_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    data = ImageFolder(str(tmp_path), 8)
    assert data[0]["id"] == data[2]["id"] == "b.png"
    reader = ChunkReader(data, Patches(), [range(3)])
    told = [caplog.text, *(fault["reason"] for fault in reader[0].faults)]
    assert len(told) == 3 and f"{tmp_path}/a.png" in told[0]
    assert not [text for text in told if "BytesIO" in text or "unreadable" not in text]
