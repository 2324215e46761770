"""Records that anybody may have changed: what is missing or of another type is named, and nothing is made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from rdm.sampling.record import KEYWORD, make_again, read_record
from rdm.sampling.record_form import check_record

RECORDS = sorted((Path(__file__).parents[2] / "records").glob("*.png"))


def written(folder: Path, text: str) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(KEYWORD, text)
    Image.new("RGB", (8, 8)).save(folder / "forged.png", pnginfo=info)
    return folder / "forged.png"


@pytest.fixture
def record() -> dict[str, Any]:
    return read_record(next(file for file in RECORDS if file.name == "text.png"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.name)
def test_records_of_the_scripts_have_the_form(file: Path) -> None:
    check_record(read_record(file))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": "x"}, "seed='x'.*a whole number"),
        ({"seed": True}, "seed='True'"),
        ({"settings": [1]}, "settings=.*an object"),
        ({"neighbours": []}, "without neighbours"),
        ({"neighbours": [5]}, r"neighbours\.0='5'"),
        ({"neighbours": [{"row": "1", "similarity": 1.0}]}, r"neighbours\.0\.row='1'"),
        ({"neighbours": [{"row": 1, "similarity": []}]}, r"neighbours\.0\.similarity"),
        ({"edit": {"picture": 7}}, "edit.picture='7'"),
        ({"query_picture": {"file": "x"}}, "without query_picture.sha256"),
        ({"seed": 10**30}, "seed=1000000"),
        ({"checkpoint": None}, "checkpoint='None'"),
        ({"config": "evil.yaml"}, "without config_sha256"),
    ],
)
def test_a_forged_entry_is_named(record: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        make_again({**record, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weaker", "best_of", "retrieve_below"])
def test_an_entry_that_a_setting_needs_is_named(record: dict[str, Any], name: str) -> None:
    value = {"weaker": "other.ckpt", "best_of": 3, "retrieve_below": 0.5}[name]
    needed = {"weaker": "weaker_sha256", "best_of": "candidates", "retrieve_below": "draft"}[name]
    with pytest.raises(ValueError, match=f"without {needed}"):
        check_record({**record, "settings": {**record["settings"], name: value}})


@pytest.mark.parametrize(
    "text",
    [
        '{"format": true}',
        '{"format": 2.0}',
        '{"format": [2]}',
        '{"format": 1}',
        '{"format": 1, "settings": []}',
        '{"format": 1, "settings": {}, "copy": 5, "asked": {"way": "x"}}',
        "[" * 100_000,
        '{"format": "\\u001b[31m"}',
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="forged.png") as caught:
        read_record(written(tmp_path, text))
    assert str(caught.value).isprintable()


def test_a_record_is_read_as_it_was_written(tmp_path: Path, record: dict[str, Any]) -> None:
    assert read_record(written(tmp_path, json.dumps(record))) == record


def test_a_picture_does_not_make_the_hub_be_asked(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hf:a/b of the Hugging Face hub, which is not fetched.*--ckpt hf:a/b"):
        make_again({**record, "checkpoint": "hf:a/b"})
