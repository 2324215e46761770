"""The endpoints of the tabs Database and Inspect, called by ``gradio_client`` over loopback."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

client = pytest.importorskip("gradio_client")

from rdm.loading import with_database  # noqa: E402
from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.sampling.record import KEYWORD  # noqa: E402
from rdm.web.limits import Limits  # noqa: E402
from rdm.web.rows import search  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

LIMITS = Limits(
    prompt_characters=60, images=6, neighbours=8, steps=20, side=32, upload_bytes=200_000, pixels=40_000, rows=50,
    additions=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def changed(loaded: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio whose database may be changed."""
    folder = tmp_path_factory.mktemp("changed") / "flags"
    shutil.copytree(loaded.retriever.database.path, folder)
    with Studio({"flags": with_database(loaded, folder)}, LIMITS, allow_changes=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def api(changed: Studio) -> Iterator[Any]:
    with serving(changed) as address:
        yield client.Client(address, verbose=False)


@pytest.fixture(scope="module")
def reading(address: str) -> Any:
    """A client of a page that changes nothing."""
    return client.Client(address, verbose=False)


def ring(shade: int) -> Image.Image:
    grey = np.asarray(Image.radial_gradient("L").resize((20, 16)))
    return Image.fromarray(np.stack([grey, 255 - grey, np.full_like(grey, shade)], axis=2))


def content(picture: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def numbers(answer: dict[str, Any]) -> list[int]:
    return [row["row"] for row in answer["rows"]]


def test_rows_are_found_by_text_and_picture_with_licence_and_picture(reading: Any, loaded: Pipeline) -> None:
    answer = reading.predict("a flag", only=["style=noto", "style=twemoji"], k=5, api_name="/search_rows")
    expected = search(loaded, "a flag", only=["style=noto", "style=twemoji"], k=5)
    assert [{**row, "png": None} for row in answer["rows"]] == [{**row.facts(), "png": None} for row in expected]
    assert [base64.b64decode(row["png"]) for row in answer["rows"]] == [row.png for row in expected]
    assert all(row["licence"] and row["attribution"] for row in answer["rows"])
    again = reading.predict(picture=answer["rows"][2]["png"], k=1, api_name="/search_rows")
    assert numbers(again) == [answer["rows"][2]["row"]]


def test_the_page_says_what_the_database_is(reading: Any) -> None:
    about = reading.predict(api_name="/describe")
    assert (about["rows"], about["living"], about["dim"], about["styles"]["noto"]) == (40, 40, 8, 8)
    assert about["licences"]["MIT"] == 8 and about["sources"]["noto.parquet#"] == 8
    assert about["index"]["factory"] == "Flat" and about["index"]["recall"]["image"]["recall@4"] == 1.0
    assert about["bytes"]["rows"] > 0 < about["bytes"]["index"]


def test_a_removed_row_is_gone_at_once_and_only_with_its_count(api: Any) -> None:
    first, second, *_ = numbers(api.predict("a flag", k=3, api_name="/search_rows"))
    counted = api.predict(f"{first}", api_name="/count_removal")
    assert counted == {"count": 1, "before": 0, "words": "1 of 40 rows would be removed"}
    with pytest.raises(Exception, match="confirmed number 2, but 1 of 40"):
        api.predict(2, f"{first}", api_name="/remove_rows")
    assert numbers(api.predict("a flag", k=1, api_name="/search_rows")) == [first]
    assert api.predict(1, f"{first}", api_name="/remove_rows") == {"removed": 1, "left": 39}
    assert numbers(api.predict("a flag", k=1, api_name="/search_rows")) == [second]
    drawn = api.predict(["a flag"], settings={"steps": 1}, api_name="/texts")["images"][0]["record"]
    assert first not in [each["row"] for each in drawn["neighbours"]]
    left = api.predict(sources=["openmoji-line.parquet#"], api_name="/count_removal")["count"]
    api.predict(left, sources=["openmoji-line.parquet#"], api_name="/remove_rows")
    about = api.predict(api_name="/describe")
    assert "openmoji-line" not in about["styles"] and about["living"] == 39 - left


def test_an_added_picture_is_found_and_drawn_with(api: Any, tmp_path: Path) -> None:
    before = api.predict(api_name="/describe")
    ring(10).save(tmp_path / "a.png")
    given = [client.handle_file(str(tmp_path / "a.png")), content(ring(200))]
    known = {"licence": "CC0-1.0", "attribution": "A. Uthor", "captions": ["a ring"]}
    answer = api.predict(given, **known, api_name="/add_rows")
    (first, second), note = answer["rows"], answer["note"]
    assert note.startswith("Popular rows are refused until search_neighbors.py")
    with pytest.raises(Exception, match=r"Popular rows are refused until search_neighbors\.py"):
        api.predict(settings={"steps": 1}, api_name="/popular")
    (found,) = api.predict(picture=content(ring(10)), k=1, api_name="/search_rows")["rows"]
    assert (found["row"], found["caption"], found["licence"]) == (first, "a ring", "CC0-1.0") and found["png"]
    after = api.predict(api_name="/describe")
    assert (after["rows"], after["living"]) == (before["rows"] + 2, before["living"] + 2)
    assert after["index"]["rows"] == after["rows"]
    drawn = api.predict(["a flag"], rows=[first, second], settings={"steps": 2}, api_name="/texts")["images"][0]
    assert [each["attribution"] for each in drawn["record"]["neighbours"]] == ["A. Uthor"] * 2
    again = api.predict(drawn["png"], api_name="/make_again")
    assert (again["equal"], again["worst"]) == (True, 0)
    with pytest.raises(Exception, match=f"picture 1 has the pixels of row {first}"):
        api.predict([content(ring(10))], **known, api_name="/add_rows")


def test_an_image_from_before_a_change_is_made_again_bit_equal(api: Any) -> None:
    drawn = api.predict(["the sun"], seed=5, settings={"steps": 3}, api_name="/texts")["images"][0]
    row = drawn["record"]["neighbours"][0]["row"]
    api.predict([content(ring(77))], "MIT", "A. Uthor", api_name="/add_rows")
    api.predict(1, f"{row}", api_name="/remove_rows")
    seen = api.predict(drawn["png"], api_name="/inspect_picture")
    assert (seen["record"], seen["note"], seen["database"]) == (drawn["record"], "", "flags")
    assert seen["neighbours"][0]["removed"] and seen["neighbours"][0]["png"] is None
    again = api.predict(drawn["png"], api_name="/make_again")
    assert again["equal"] and again["words"] == "Made again: all 256 pixels are equal."
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["png"])))) for each in (drawn, again)]
    np.testing.assert_array_equal(*pixels)


def test_an_edit_is_made_again_with_its_picture(api: Any) -> None:
    given = {"way": "vary", "strength": 0.6, "prompt": "a flag", "settings": {"steps": 4}}
    picture = content(ring(30))
    edited = api.predict(picture, **given, api_name="/edit")["images"][0]
    with pytest.raises(Exception, match="a picture that was edited with sha256 .*; upload this file, too"):
        api.predict(edited["png"], api_name="/make_again")
    assert api.predict(edited["png"], [picture], api_name="/make_again")["equal"]


def test_a_picture_from_elsewhere_shows_its_nearest_rows(reading: Any, loaded: Pipeline) -> None:
    (pixels,) = loaded.retriever.database.patches([7])
    seen = reading.predict(content(Image.fromarray(pixels)), k=3, api_name="/inspect_picture")
    assert seen["record"] is None and seen["neighbours"] == [] and "no record" in seen["note"]
    assert [row["row"] for row in seen["nearest"]][0] == 7 and len(seen["nearest"]) == 3
    assert seen["copy"].startswith("A copy: the similarity to the nearest row, 7, is")


def recorded(text: str) -> str:
    """A picture with a text in the place of its record."""
    info = PngInfo()
    info.add_text(KEYWORD, text)
    return content(ring(0), pnginfo=info)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 2}', "[" * 50_000, '{"format": 99}', "\u0000"])
def test_a_broken_record_is_said_in_one_line(reading: Any, text: str) -> None:
    seen = reading.predict(recorded(text), api_name="/inspect_picture")
    assert seen["record"] is None and seen["note"] == "The record of this picture is damaged, or of another program."
    with pytest.raises(Exception, match=r"The record of this picture is damaged, or of another program\."):
        reading.predict(recorded(text), api_name="/make_again")


def test_texts_of_a_record_are_never_html(changed: Studio) -> None:
    from rdm.web.inspect import report
    from rdm.web.inspection import Inspected

    evil = "<img src=x onerror=alert(1)>"
    about = dict.fromkeys(("image_id", "caption", "uri", "licence", "attribution"), evil)
    record = {
        "query": evil, "prompt": evil + evil, "seed": 1, "checkpoint": evil, "checkpoint_sha256": evil, "torch": evil,
        "settings": {evil: evil}, "asked": {"way": evil, evil: evil}, "database": evil, "edit": {"picture": evil},
        "neighbours": [{"row": 1, "similarity": 0.5, **about}], evil: evil,
    }  # fmt: skip
    html = report(changed, Inspected(ring(0), json.loads(json.dumps(record)), obstacle=evil))
    assert "<img src=x" not in html and html.count("&lt;img src=x") > 10


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/search_rows", {"text": "x" * 61}, "61 characters in a prompt"),
    ("/search_rows", {"k": 51}, "51 rows in a search, expected at most 50"),
    ("/search_rows", {"k": 0}, "k=0"),
    ("/search_rows", {"k": "many"}, "k='many'"),
    ("/search_rows", {"only": ["noto"]}, "'noto', expected COLUMN=VALUE"),
    ("/search_rows", {"only": ["colour=red"]}, "no metadata column 'colour'"),
    ("/search_rows", {"only": "style=noto"}, "only='style=noto'"),
    ("/search_rows", {"database": "other"}, "database 'other', expected one of flags"),
    ("/search_rows", {"database": "../flags"}, "database '../flags'"),
    ("/search_rows", {"picture": "not base64!"}, "Base64"),
    ("/search_rows", {"picture": {"path": "/etc/passwd"}}, "no upload of this page"),
    ("/search_rows", {"picture": 7}, "a text in Base64"),
    ("/count_removal", {}, "neither rows nor a source"),
    ("/count_removal", {"rows": "x"}, "rows 'x', expected numbers"),
    ("/count_removal", {"rows": "0-99999"}, "expected numbers from 0"),
    ("/count_removal", {"sources": "noto"}, "sources='noto'"),
    ("/remove_rows", {"count": 0, "sources": ["nothing"]}, "the confirmed number 0"),
    ("/remove_rows", {"count": True, "rows": "1"}, "count=True"),
    ("/add_rows", {"pictures": [], "licence": "MIT", "attribution": "X"}, "no picture to add"),
    ("/add_rows", {"pictures": [content(ring(1))], "licence": "", "attribution": "X"}, "no licence"),
    ("/add_rows", {"pictures": [content(ring(1))], "licence": "MIT", "attribution": " "}, "no attribution"),
    ("/add_rows", {"pictures": [content(ring(1))] * 4, "licence": "MIT", "attribution": "X"}, "4 pictures at once"),
    (
        "/add_rows",
        {"pictures": [content(ring(1))] * 2, "licence": "MIT", "attribution": "X"},
        "has the pixels",
    ),
    ("/add_rows", {"pictures": [{"path": "/etc/passwd"}], "licence": "MIT", "attribution": "X"}, "no upload"),
    ("/add_rows", {"pictures": [content(ring(1))], "licence": "x" * 61, "attribution": "X"}, "61 characters"),
    ("/inspect_picture", {"picture": content(ring(1))[:200]}, "no picture|truncated|Base64"),
    ("/inspect_picture", {"picture": base64.b64encode(b"\x80\x04.").decode()}, "no picture"),
    ("/inspect_picture", {"picture": content(Image.new("1", (3000, 3000)))}, "pixels in an uploaded picture"),
    ("/inspect_picture", {"picture": None}, "a text in Base64"),
    ("/make_again", {"picture": content(ring(1))}, "has no record"),
]


@pytest.mark.parametrize(("endpoint", "given", "words"), WRONG)
def test_what_is_wrong_is_one_line_and_the_next_request_works(
    api: Any, endpoint: str, given: dict[str, Any], words: str
) -> None:
    rows = api.predict(api_name="/describe")["rows"]
    with pytest.raises(Exception, match=words) as caught:
        api.predict(**given, api_name=endpoint)
    message = str(caught.value)
    assert type(caught.value).__name__ == "AppError" and "\n" not in message and "Traceback" not in message
    assert api.predict(api_name="/describe")["rows"] == rows


@pytest.mark.parametrize(
    ("endpoint", "given"),
    [
        ("/count_removal", {"rows": "1"}),
        ("/remove_rows", {"count": 1, "rows": "1"}),
        ("/add_rows", {"pictures": [content(ring(1))], "licence": "MIT", "attribution": "X"}),
    ],
)
def test_without_allow_changes_nothing_is_changed(
    reading: Any, served: Studio, endpoint: str, given: dict[str, Any]
) -> None:
    with pytest.raises(Exception, match="this page changes no database; start it with --allow-changes"):
        reading.predict(**given, api_name=endpoint)
    database = served.pipeline().retriever.database
    assert (len(database), database.removed) == (40, 0) and not (database.path / "added").exists()


def test_every_endpoint_has_a_docstring_and_leaves_no_file(api: Any, changed: Studio, tmp_path: Path) -> None:
    described = api.view_api(return_format="dict")["named_endpoints"]
    mine = {"search_rows", "describe", "count_removal", "remove_rows", "add_rows", "inspect_picture", "make_again"}
    assert {f"/{name}" for name in mine} <= set(described)
    assert [name for name, about in described.items() if len(about.get("description") or "") < 20] == []
    ring(3).save(tmp_path / "a.png")
    api.predict(client.handle_file(str(tmp_path / "a.png")), api_name="/inspect_picture")
    assert [file for file in changed.folder.rglob("*") if file.is_file()] == []
