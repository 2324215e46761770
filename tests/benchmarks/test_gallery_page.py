"""The gallery: its page has the text of its entries, a person has looked at all pictures, and no option is missing."""

import dataclasses
import shlex
from pathlib import Path

import pytest
from parsers import parser_of
from PIL import Image

from benchmarks import gallery
from benchmarks.gallery import DOCS, ROOT, SAMPLING, UNSEEN, Entry, make, page, read_gallery, read_picture

INTRO, HEADINGS = read_gallery()
ENTRIES = [entry for entries in HEADINGS.values() for entry in entries]
COMMANDS = [line for entry in ENTRIES if not entry.is_code for line, _ in entry.steps]

# Options that no entry shows, because they do not change a picture.
NO_PICTURE = {
    "--outdir", "--ckpt", "--config", "--trust",  # paths and trust
    "--batch_size", "--tile", "--compile", "--precision", "--no_copy_check", "--sign",  # the same picture
    "--model", "--temperature", "--top_k", "--top_p",  # the pictures of rarm are next to its weights
    "--weaker", "--weaker_scale",  # no weights of a weaker model are shipped, nor of another generator
    "--generator", "--adapter", "--image_encoder", "--neighbour_scale", "--combine", "--negative_prompt", "--offload",
}  # fmt: skip


def test_the_page_is_what_the_entries_say() -> None:
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == page(INTRO, HEADINGS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_pictures_are_of_the_command_and_were_looked_at(entry: Entry) -> None:
    assert entry.is_made and entry.seen and entry.looked_at == entry.hash


def test_the_pictures_are_few_and_small() -> None:
    files = sorted((DOCS / "gallery").glob("*.png"))
    assert files == sorted(file for entry in ENTRIES for file in entry.pictures)
    assert sum(file.stat().st_size for file in files) < 3e6


@pytest.mark.parametrize("command", COMMANDS)
def test_the_scripts_take_the_commands(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python, script, *words = shlex.split(command)
    name = Path(script).name
    assert python == "python" and Path(script).parent == Path("scripts")
    parser = parser_of(f"scripts/{name}")
    parser.parse_args(words if name in SAMPLING else ["build", *words])
    monkeypatch.chdir(ROOT)
    assert all(Path(word).exists() for word in words if word.startswith(("docs/", "models/")))


@pytest.mark.parametrize("script", SAMPLING)
def test_every_option_is_shown(script: str) -> None:
    typed = {word for command in COMMANDS for word in shlex.split(command) if word.startswith("--")}
    for action in parser_of(f"scripts/{script}")._actions:
        if action.dest != "help":
            assert typed & set(action.option_strings) or NO_PICTURE & set(action.option_strings), action.option_strings
    assert not typed & NO_PICTURE


def test_an_image_that_is_made_again_is_the_same() -> None:
    first, again = next(entry for entry in ENTRIES if entry.name == "again").pictures
    assert read_picture(first) == read_picture(again)


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gallery, "DOCS", tmp_path / "docs")
    return tmp_path / "docs"


CODE = """from PIL import Image
Image.new("RGB", (3, 2), {colour!r}).save("a.png")
print("a.png")"""


def test_what_was_seen_counts_for_the_picture_and_the_command_that_it_is_about(docs: Path, tmp_path: Path) -> None:
    entry = Entry("a", "A square", "Text.", CODE.format(colour="red"), seen="It is red.")
    assert not entry.is_made and entry.section().endswith(UNSEEN)
    make(entry, tmp_path / "run")
    assert entry.is_made and entry.section().endswith(UNSEEN)
    entry = dataclasses.replace(entry, looked_at=entry.hash)
    expected = f"### A square\n\nText. {entry.columns}\n\n```python\n{entry.command}\n```"
    assert entry.section() == f"{expected}\n\n![A square](gallery/a-1.png)\n\nIt is red."
    with Image.open(docs / "gallery" / "a-1.png") as picture:
        assert picture.size == (3, 2) and picture.getpixel((0, 0)) == (255, 0, 0)
    other = dataclasses.replace(entry, command=CODE.format(colour="blue"))
    assert not other.is_made and other.section().endswith(UNSEEN)
    make(other, tmp_path / "run")
    assert other.is_made and other.section().endswith(UNSEEN) and not entry.is_made


def test_a_command_that_fails_says_its_last_line_and_leaves_the_picture(docs: Path, tmp_path: Path) -> None:
    make(entry := Entry("a", "A", "", CODE.format(colour="red")), tmp_path / "run")
    before = (docs / "gallery" / "a-1.png").read_bytes()
    script = "python scripts/edit.py --image none.png --strength 2"
    with pytest.raises(ValueError, match=r"^a: .*--strength"):
        make(dataclasses.replace(entry, command=script), tmp_path / "run")
    assert (docs / "gallery" / "a-1.png").read_bytes() == before


def test_an_entry_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gallery.yaml").write_text("intro: Hello.\nTexts:\n  a: {title: A, text: B, comand: C}\n")
    with pytest.raises(ValueError, match="gallery.yaml: a .*'comand'.*'command'"):
        read_gallery(tmp_path / "gallery.yaml")


def test_commands_that_make_no_picture_have_none() -> None:
    lines = ["python scripts/build_database.py --output a", "python scripts/txt2img.py --prompt b"]
    entry = Entry("a", "A", "", "\n".join([*lines, lines[1]]))
    files = [DOCS / "gallery" / name for name in ("a-1.png", "a-2.png")]
    assert entry.steps == [(lines[0], None), (lines[1], files[0]), (lines[1], files[1])] and entry.pictures == files
