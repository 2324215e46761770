"""Captions of a folder of pictures: text files, a table, file names and folders, in the order that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm.data import ImageFolder
from ldm.data.captions import SOURCES, words_of

FILES = ("red_guitar-2.png", "fruit/IMG_0042.png", "fruit/green apple.png", "6dd915_n.png", "fruit/2021/0001.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (40 * number, 0, 90)).save(file)
    return tmp_path / "pictures"


def captions(root: Path, *sources: str, **options: str) -> dict[str, str]:
    images = ImageFolder(str(root), 8, captions=sources, **options)
    return {known["id"]: known["caption"] for known in map(images.metadata, range(len(images)))}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_guitar-2", "red guitar"),
        ("0007 a cat's paw (1)", "a cat's paw"),
        ("Große.Mühle", "Große Mühle"),
        ("IMG_0042", ""),
        ("image copy", ""),
        ("10043234166_e6dd915111_n", ""),
        ("picture of a dog", "picture of a dog"),
        ("x", ""),
    ],
)
def test_words_of_a_file_name(name: str, words: str) -> None:
    assert words_of(name) == words


def test_the_first_source_that_has_a_caption_counts(root: Path) -> None:
    (root / "red_guitar-2.txt").write_text("a guitar\n", encoding="utf-8")
    (root / "fruit/IMG_0042.txt").write_text(" \n", encoding="utf-8")
    (root / "captions.csv").write_text(
        'file,caption\nred_guitar-2.png,"red, very red"\n./fruit\\IMG_0042.png,a pear\n', encoding="utf-8"
    )
    nothing = dict.fromkeys(FILES, "")
    guitar, pear, apple, _, deep = FILES
    assert captions(root) == nothing
    assert captions(root, "txt") == {**nothing, guitar: "a guitar"}
    assert captions(root, "csv") == {**nothing, guitar: "red, very red", pear: "a pear"}
    assert captions(root, "name") == {**nothing, guitar: "red guitar", apple: "green apple"}
    assert captions(root, "folder") == {**nothing, **dict.fromkeys((pear, apple, deep), "fruit")}
    both = {**nothing, guitar: "a guitar", pear: "a pear", apple: "green apple", deep: "fruit"}
    assert captions(root, *SOURCES) == both
    assert captions(root, "folder", "csv") == {**both, guitar: "red, very red", pear: "fruit", apple: "fruit"}
    images = ImageFolder(str(root), 8, captions=SOURCES)
    assert images.captions.of(pear) == ("a pear", "csv") and images.captions.of("6dd915_n.png") == ("", "")


def test_tables_of_other_programs_are_read(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("\ufeffId;Text;File_Name\n1;ein Apfel;fruit/green apple.png\n2;weg;gone.png\n", encoding="utf-8")
    assert captions(root, "csv", caption_table=str(table))["fruit/green apple.png"] == "ein Apfel"
    assert "name no picture" in caplog.text and ": 1, such as" in caplog.text and "gone.png" in caplog.text


@pytest.mark.parametrize(
    ("tables", "sources", "expected"),
    [
        ({"a.csv": "url,alt\nx,y\n"}, ("csv",), "a.csv has the columns url, alt; expected one of file, "),
        ({"a.csv": ""}, ("csv",), "a.csv has the columns none"),
        ({"a.csv": "file,caption\nnone.png,y\n"}, ("csv",), "a.csv: no line names a picture.*none.png"),
        ({"a.csv": "file,caption\n", "b.csv": "file,caption\n"}, ("csv",), "several tables.* a.csv, b.csv"),
        ({}, ("nam",), "got the source 'nam'; did you mean 'name'"),
    ],
)
def test_wrong_tables_are_named_in_one_line(
    root: Path, tables: dict[str, str], sources: tuple[str, ...], expected: str
) -> None:
    for name, text in tables.items():
        (root / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=expected) as error:
        captions(root, *sources)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_or_not_asked_for_is_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no table at {root / 'none.csv'}"):
        captions(root, "csv", caption_table=str(root / "none.csv"))
    with pytest.raises(ValueError, match="none.csv with the sources name, expected csv too"):
        captions(root, "name", caption_table="none.csv")
