"""Folders of classes, lists of files and ranges of classes, as ImageNet, FFHQ and LSUN come."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm.data import ImageFolder

NAMES = ("n01/a.png", "n01/b.png", "n02/c.png", "n03/d.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of three classes."""
    for shade, name in enumerate(NAMES):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)
    return tmp_path / "pictures"


def test_a_list_gives_files_and_their_order(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("n02/c.png\n\n./n01/a.png\n")
    pictures = ImageFolder(str(root), 8, files=str(listed))
    assert [pictures[i]["id"] for i in range(len(pictures))] == ["n02/c.png", "n01/a.png"]
    assert pictures[0]["image"][0, 0, 0].item() == pytest.approx(2 / 127.5 - 1)


def test_a_range_keeps_classes_and_a_file_names_them(root: Path, tmp_path: Path) -> None:
    names = tmp_path / "synsets.txt"
    names.write_text("n02 dog, domestic dog\nn03 cat\n")
    pictures = ImageFolder(str(root), 8, classes=[1, 3], class_names=str(names))
    items = [pictures.metadata(i) for i in range(len(pictures))]
    assert [(i["class_id"], i["caption"]) for i in items] == [("n02", "dog, domestic dog"), ("n03", "cat")]
    with pytest.raises(ValueError, match="'n01'"):
        ImageFolder(str(root), 8, class_names=str(names))


@pytest.mark.parametrize("classes", [[2, 1], [0, 4], [1]])
def test_a_range_that_is_none_is_refused(root: Path, classes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected \[first, end\] within \[0, 3\]"):
        ImageFolder(str(root), 8, classes=classes)


def test_a_list_that_is_missing_or_empty_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no list at"):
        ImageFolder(str(root), 8, files=str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="got the empty list"):
        ImageFolder(str(root), 8, files=str(tmp_path / "empty.txt"))
