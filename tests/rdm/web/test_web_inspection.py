"""What the page says of a picture, and images that it makes again."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import draw
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rdm.loading import with_database
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.neighbours import with_neighbours
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import KEYWORD, read_record, save
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.signing import Key, Verdict, Verified
from rdm.web import row_markup
from rdm.web.drawing import Drawn
from rdm.web.inspection import Inspected, again, compared, copy_words, inspected, nearest_rows, needed, record_rows
from rdm.web.limits import Limits
from rdm.web.rows import GIVEN
from rdm.web.studio import Studio

FAST = {"k": 2, "seed": 3, "steps": 3, "sampler": "ddim"}


@pytest.fixture
def studio(loaded: Pipeline, tmp_path: Path) -> Iterator[Studio]:
    """With a part of the database first, so that the place has to be found."""
    shutil.copytree(loaded.retriever.database.path, tmp_path / "flags")
    with Studio({"small": loaded, "flags": with_database(loaded, tmp_path / "flags")}, Limits(steps=20)) as studio:
        yield studio


@pytest.fixture
def image(loaded: Pipeline, studio: Studio) -> Path:
    """An uploaded image that was made here."""
    return made(studio, draw(ways.texts, loaded, ["a red flag"], **FAST), loaded)


def made(studio: Studio, samples: Any, loaded: Pipeline) -> Path:
    save(samples, loaded, studio.folder, "made")
    return studio.folder / "made-000.png"


def look(studio: Studio, file: Path) -> Inspected:
    return inspected(studio, file.read_bytes())


def drawn(studio: Studio, found: Inspected, *pictures: Path) -> Image.Image:
    """The image made again."""
    (event,) = [
        each
        for each in studio.draw([again(studio, found, [file.read_bytes() for file in pictures])])
        if isinstance(each, Drawn)
    ]
    return Image.open(io.BytesIO(event.png))


def with_record(image: Path, record: Any) -> Path:
    """A copy of an image that has another record, or another text in its place."""
    info, file = PngInfo(), image.with_name("forged.png")
    info.add_text(KEYWORD, record if isinstance(record, str) else json.dumps(record))
    Image.open(image).save(file, pnginfo=info)
    return file


def test_an_image_made_here_says_what_it_was_made_of_and_is_made_again(studio: Studio, image: Path) -> None:
    found = look(studio, image)
    assert (found.note, found.obstacle, found.place) == ("", "", "small")
    assert found.record is not None and found.record["query"] == "a red flag" and found.record["seed"] == 3
    rows = record_rows(studio, found)
    assert [row.facts() for row in rows] == [
        {key: each[key] for key in ("row", "similarity", "image_id", "caption", "uri", "licence", "attribution")}
        for each in found.record["neighbours"]
    ]
    assert all(row.png is not None and not row.removed for row in rows)
    nearest = nearest_rows(studio, found)
    assert (nearest[0].number, nearest[0].similarity) == (found.record["copy"]["row"], found.record["copy"]["likeness"])
    assert copy_words(found, nearest).startswith("A copy" if found.record["copy"]["is_copy"] else "No copy")
    result = compared(found.picture, drawn(studio, found))
    assert (result.equal, result.worst, result.differing) == (
        True,
        0,
        0,
    ) and "all 256 pixels are equal" in result.words()


def test_what_was_changed_is_counted(studio: Studio, image: Path) -> None:
    pixels = np.array(Image.open(image))
    pixels[3, 4, 1] ^= 8
    pixels[5, 6, 0] ^= 32
    info = PngInfo()
    info.add_text(KEYWORD, Image.open(image).text[KEYWORD])
    Image.fromarray(pixels).save(image, pnginfo=info)
    found = look(studio, image)
    result = compared(found.picture, drawn(studio, found))
    assert (result.equal, result.worst, result.differing) == (False, 32, 2)
    assert "2 of 256 pixels differ, by at most 32" in result.words()
    other = compared(found.picture, Image.new("RGB", (8, 8)))
    assert not other.equal and "different sizes" in other.words()


def test_images_of_pictures_need_these_pictures(studio: Studio, loaded: Pipeline, tmp_path: Path) -> None:
    (pixels,) = loaded.retriever.database.patches([7])
    picture, mask = Image.fromarray(pixels), Image.fromarray(np.repeat(np.uint8([[0] * 8 + [255] * 8]), 16, axis=0))
    picture.save(tmp_path / "a.bmp")
    edited = {"prompt": "a flag", "mask": mask, "repeats": 2, **FAST}
    for given, options in ((picture, edited), (tmp_path / "a.bmp", {"strength": 0.5, **FAST})):
        found = look(studio, made(studio, draw(edit, loaded, given, **options), loaded))
        assert found.record is not None and set(needed(found.record)) <= {"picture", "mask"}
        with pytest.raises(ValueError, match="a picture that was edited with sha256 .*; upload this file, too"):
            again(studio, found)
        picture.save(studio.folder / "upload.png")
        (studio.folder / "upload.bmp").write_bytes((tmp_path / "a.bmp").read_bytes())
        mask.save(studio.folder / "mask.png")
        uploads = [studio.folder / name for name in ("mask.png", "upload.png", "upload.bmp")]
        assert compared(found.picture, drawn(studio, found, *uploads)).equal
    found = look(studio, made(studio, draw(ways.image, loaded, picture, 1, tokens="both", **FAST), loaded))
    with pytest.raises(ValueError, match="a picture in the query with sha256"):
        again(studio, found)
    assert compared(found.picture, drawn(studio, found, studio.folder / "upload.png")).equal


def test_a_neighbour_that_was_given_is_named_and_needed(studio: Studio, loaded: Pipeline, tmp_path: Path) -> None:
    picture = Image.radial_gradient("L").convert("RGB").resize((20, 16))
    picture.save(tmp_path / "a.png")
    asked = ways.texts(loaded, ["a flag"], k=2, seed=3)
    for given in (picture, tmp_path / "a.png"):
        samples = sample(loaded, with_neighbours(loaded, asked, 0, [7, given]), Settings(steps=3, sampler="ddim"))
        found = look(studio, made(studio, samples, loaded))
        row, shown = record_rows(studio, found)
        assert (row.number, shown.number, shown.png) == (7, GIVEN, None) and "row" not in shown.facts()
        with pytest.raises(ValueError, match="a picture as neighbour 2 with sha256"):
            again(studio, found)
        picture.save(studio.folder / "upload.png")
        assert compared(found.picture, drawn(studio, found, studio.folder / "upload.png")).equal


def test_removed_neighbours_are_shown_without_their_picture(studio: Studio, image: Path) -> None:
    database = studio.pipeline("flags").retriever.database
    first = read_record(image)["neighbours"][0]["row"]
    database.remove([first])
    with Studio({"flags": studio.pipeline("flags")}) as other:
        shutil.copy(image, other.folder)
        rows = record_rows(other, look(other, other.folder / image.name))
    assert (rows[0].number, rows[0].removed, rows[0].png) == (first, True, None) and not rows[1].removed


def test_a_picture_from_elsewhere_has_its_nearest_rows(studio: Studio) -> None:
    (pixels,) = studio.pipeline().retriever.database.patches([7])
    for form in ("png", "jpg"):
        Image.fromarray(pixels).save(studio.folder / f"elsewhere.{form}", quality=95)
        found = look(studio, studio.folder / f"elsewhere.{form}")
        assert found.record is None and "no record" in found.note and record_rows(studio, found) == []
        nearest = nearest_rows(studio, found, k=3)
        assert nearest[0].number == 7 and len(nearest) == 3
        assert copy_words(found, nearest).startswith("A copy: the similarity to the nearest row, 7, is")
        with pytest.raises(ValueError, match="no record"):
            again(studio, found)


def test_what_is_no_picture_is_one_line(studio: Studio, image: Path) -> None:
    data = image.read_bytes()
    for content, message in (
        (data[:-40], "truncated"),
        (data[:99], "no picture"),
        (b"x" * 100, "no picture"),
        (b"", "no picture"),
    ):
        (studio.folder / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            look(studio, studio.folder / "bad.png")


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no JSON": lambda record: json.dumps(record)[:-20],
    "empty": lambda _: "",
    "a list": lambda record: [record],
    "a number": lambda _: "7",
    "deep": lambda _: "[" * 100_000,
    "another format": lambda record: {**record, "format": 99},
    "format 1 without settings": lambda _: {"format": 1},
    "no neighbours": lambda record: {key: record[key] for key in record if key != "neighbours"},
    "neighbours that are texts": lambda record: {**record, "neighbours": ["x"]},
    "a negative row": lambda record: {**record, "neighbours": [{**record["neighbours"][0], "row": -1}]},
    "a caption that is a list": lambda record: {**record, "neighbours": [{**record["neighbours"][0], "caption": []}]},
    "a seed that is a text": lambda record: {**record, "seed": "3"},
    "a large seed": lambda record: {**record, "seed": 2**70},
    "settings that are a text": lambda record: {**record, "settings": "fast"},
    "half a copy check": lambda record: {**record, "copy": {"row": 3}},
    "not a number": lambda record: {**record, "neighbours": [{**record["neighbours"][0], "similarity": float("nan")}]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_one_line_and_the_picture_one_from_elsewhere(
    studio: Studio, image: Path, damage: str
) -> None:
    found = look(studio, with_record(image, DAMAGES[damage](read_record(image))))
    assert found.record is None and found.note == "The record of this picture is damaged, or of another program."
    assert len(nearest_rows(studio, found)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_sha256": "0" * 64}, "another model than that of this page"),
        ({"config": "x.yaml", "config_sha256": "0" * 64}, "another model than that of this page"),
        ({"database_fingerprint": "0" * 64, "embedder_fingerprint": "0"}, "a database that this page does not have"),
        ({"neighbours": [], "database_fingerprint": 3, "embedder_fingerprint": 3}, "does not have"),
    ],
)
def test_another_model_or_database_is_said_and_only_the_texts_are_shown(
    studio: Studio, image: Path, change: dict[str, Any], message: str
) -> None:
    record = read_record(image)
    found = look(studio, with_record(image, {**record, **change}))
    assert found.place is None and message in found.obstacle
    rows = record_rows(studio, found)
    assert len(rows) == len(change.get("neighbours", record["neighbours"])) and all(row.png is None for row in rows)
    with pytest.raises(ValueError, match=message):
        again(studio, found)


def test_a_row_that_the_database_does_not_have_is_refused(studio: Studio, image: Path) -> None:
    record = read_record(image)
    for row in (40, 10**30):
        forged = {**record, "neighbours": [{**record["neighbours"][0], "row": row}]}
        assert "does not have" in look(studio, with_record(image, forged)).obstacle


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"steps": 10**9}, "steps=1000000000, expected 1 to 1000"),
        ({}, {"steps": 30}, "30 denoising steps.*expected at most 20"),
        ({}, {"height": 4096}, "4096 pixels at a side"),
        ({}, {"colour": "red"}, "unknown sampling option 'colour'"),
        ({}, {"compile": "inductor"}, "compiled networks"),
        ({"prompt": "x" * 1000}, {}, "1000 characters in a prompt"),
        ({"prompt": 7}, {}, "incomplete or damaged"),
        ({"tokens": "all"}, {}, "tokens 'all'"),
        ({"edit": {"picture_sha256": None}}, {}, "incomplete or damaged"),
        ({"edit": [1]}, {}, "incomplete or damaged"),
        ({"query_picture": {"sha256": ["x"]}}, {}, "incomplete or damaged"),
    ],
)
def test_records_that_ask_for_too_much_or_for_nonsense_are_refused_in_one_line(
    studio: Studio, image: Path, change: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    record = read_record(image)
    forged = {**record, **change, "settings": {**record["settings"], **settings}}
    found = look(studio, with_record(image, forged))
    assert found.place is not None
    with pytest.raises(ValueError, match=message) as error:
        drawn(studio, found)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 400


@pytest.mark.parametrize(("size", "outpaint"), [([10**6, 10**6], None), (10**6, None), (None, [10**6, 0, 0, 0])])
def test_an_edit_of_a_stranger_cannot_fill_the_memory(
    studio: Studio, image: Path, size: Any, outpaint: list[int] | None
) -> None:
    Image.new("RGB", (16, 16)).save(studio.folder / "upload.png")
    sha256 = hashlib.sha256((studio.folder / "upload.png").read_bytes()).hexdigest()
    about = {"picture": "x", "picture_sha256": sha256, "mask": None, "mask_sha256": None, "strength": 0.5}
    about |= {"size": size, "outpaint": outpaint, "repeats": 1, "invert": False, "inverted_with_rows": None}
    found = look(studio, with_record(image, {**read_record(image), "edit": about}))
    with pytest.raises(ValueError, match="1000000 pixels at a side of an image, expected at most 256"):
        again(studio, found, [(studio.folder / "upload.png").read_bytes()])


class Marks:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_nothing_that_a_record_names_is_opened(studio: Studio, image: Path, tmp_path: Path) -> None:
    trap, secret = tmp_path / "trap.ckpt", tmp_path / "secret.png"
    trap.write_bytes(pickle.dumps({"state_dict": Marks(tmp_path / "executed")}))
    Image.new("RGB", (16, 16), "red").save(secret)
    record = read_record(image)

    def sha256(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    canvas = {"picture": str(secret), "picture_sha256": sha256(secret), "mask": None, "mask_sha256": None}
    canvas |= {"outpaint": None, "size": None, "strength": 0.5, "repeats": 1, "invert": False}
    shown = {"file": str(secret), "sha256": sha256(secret)}
    weaker = {**record["settings"], "weaker": str(trap), "weaker_scale": 1.5}
    forged: list[Mapping[str, Any]] = [
        {**record, "checkpoint": str(trap), "checkpoint_sha256": sha256(trap), "config": str(trap)},
        {**record, "checkpoint": str(trap), "database": str(tmp_path), "edit": {**canvas, "inverted_with_rows": None}},
        {**record, "tokens": "both", "query_picture": shown},
        {**record, "settings": weaker, "weaker_sha256": sha256(trap)},
    ]
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    for each in forged:
        found = look(studio, with_record(image, each))
        with pytest.raises(ValueError, match="another model|upload this file, too|a weaker model"):
            drawn(studio, found)
    assert not {str(trap), str(secret)} & set(opened) and str(studio.folder / "forged.png") in opened
    assert not (tmp_path / "executed").exists()
    moved = {**record, "checkpoint": str(trap), "database": str(tmp_path / "moved")}
    found = look(studio, with_record(image, moved))
    assert compared(found.picture, drawn(studio, found)).equal  # with the model of the page


def test_an_image_of_autoguidance_by_the_own_model_is_made_again(studio: Studio, loaded: Pipeline) -> None:
    options = {"weaker": str(loaded.path), "weaker_scale": 1.5, **FAST}
    found = look(studio, made(studio, draw(ways.texts, loaded, ["a flag"], **options), loaded))
    assert compared(found.picture, drawn(studio, found)).equal


def test_the_page_signs_what_it_draws_and_says_what_a_signature_proves(
    loaded: Pipeline, studio: Studio, image: Path
) -> None:
    assert look(studio, image).signature is None and "Signature" not in row_markup.record(look(studio, image), "")
    with Studio({"flags": loaded}, key=Key(bytes(32))) as signing:
        options = {name: value for name, value in FAST.items() if name not in ("k", "seed")}
        job = signing.job("flags", ways.texts(loaded, ["a red flag"], k=2, seed=3), Settings.of(**options))
        (event,) = [each for each in signing.draw([job]) if isinstance(each, Drawn)]
        drawn = inspected(signing, event.png)
        assert drawn.signature is not None and drawn.signature.verdict is Verdict.SIGNED
        assert "Signature: signed by this key" in row_markup.record(drawn, "")
        assert inspected(signing, event.neighbours[0]).signature == Verified(Verdict.NOT_SIGNED)
        unsigned = inspected(signing, image.read_bytes())
        assert unsigned.signature == Verified(Verdict.NOT_SIGNED) and unsigned.record is not None
        assert '<p class="message flag" role="status">Signature: not signed.</p>' in row_markup.record(unsigned, "")
        pixels = np.array(Image.open(io.BytesIO(event.png)))
        pixels[0, 0, 0] ^= 1
        info = PngInfo()
        for name, text in Image.open(io.BytesIO(event.png)).text.items():
            info.add_text(name, text)
        Image.fromarray(pixels).save(image, pnginfo=info)
        changed = inspected(signing, image.read_bytes())
        assert changed.signature == Verified(Verdict.PIXELS) and changed.record == drawn.record
    with Studio({"flags": loaded}, key=Key(bytes(31) + b"1")) as other:
        seen = inspected(other, event.png).signature
        assert seen is not None and seen.verdict is Verdict.OTHER_KEY
