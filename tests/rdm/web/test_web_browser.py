"""The page in Chromium: the main path of each tab by clicking. Without Debian's chromium, the tests are skipped."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium; install Debian's package of that name", allow_module_level=True)

from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.sampling.record import read_record  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

SECONDS = 30_000  # until a picture has to be there, in milliseconds; much more than it takes


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """An open page, whose errors and requests are watched."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(SECONDS)
    errors: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def draw(page: Any) -> None:
    page.get_by_role("button", name="Draw", exact=True).locator("visible=true").click()


def ask(page: Any, text: str, steps: int = 2) -> None:
    page.get_by_placeholder("a red guitar").fill(text)
    page.get_by_label("Steps").locator("visible=true").fill(str(steps))
    draw(page)


def source(page: Any, selector: str) -> str:
    return page.locator(selector).first.get_attribute("src")


def upload(page: Any, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Click to Upload").locator("visible=true").click()
    chooser.value.set_files(file)


def saved(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("a[download]").first.click()
    download.value.save_as(folder / "saved.png")
    return folder / "saved.png"


def test_a_text_becomes_an_image_beside_its_neighbours(page: Any, loaded: Pipeline, tmp_path: Path) -> None:
    ask(page, "a flag\nthe sun")
    page.wait_for_selector(".card >> nth=1")
    assert page.locator(".card").count() == 2 and page.locator(".card .slot").count() == 2 * loaded.k
    assert page.get_by_role("img", name="a flag", exact=True).count() == 1
    file = saved(page, tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(loaded("a flag", steps=2)[0]))
    assert read_record(file)["prompt"] == "a flag"
    page.locator(".card summary").first.click()
    attribution = read_record(file)["neighbours"][0]["attribution"]
    assert page.get_by_text(attribution).first.is_visible()


def test_a_neighbour_that_is_switched_off_changes_the_image(page: Any) -> None:
    ask(page, "a flag")
    page.wait_for_selector(".card")
    first = source(page, ".image .pixels")
    page.click("[data-do=switch][data-slot='0']")
    page.wait_for_selector(".slot.off")
    assert page.locator("[data-do=switch][data-slot='0']").get_attribute("aria-pressed") == "false"
    page.click("[data-do=again]")
    page.wait_for_selector(".before")
    assert source(page, ".image .pixels") != first == source(page, ".before .pixels")
    page.keyboard.press("Tab")  # the focus is where it was
    page.click("[data-do=switch][data-slot='0']")
    page.wait_for_selector(".slot.off", state="detached")
    page.click("[data-do=again]")
    page.wait_for_function("first => document.querySelector('.image .pixels').src === first", arg=first)


def test_a_neighbour_is_replaced_by_a_search_and_by_an_upload(page: Any, tmp_path: Path) -> None:
    ask(page, "a flag")
    page.wait_for_selector(".card")
    first = source(page, ".image .pixels")
    page.click("[data-do=swap][data-slot='1']")
    page.get_by_label("Search the database").locator("visible=true").fill("the sun")
    page.get_by_role("button", name="Search").locator("visible=true").click()
    page.wait_for_selector(".found li")
    page.locator(".found button").nth(5).click()
    page.wait_for_selector(".slot.new")
    page.click("[data-do=again]")
    page.wait_for_selector(".before")
    second = source(page, ".image .pixels")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "own.png")
    page.click("[data-do=swap][data-slot='0']")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload").locator("visible=true").click()
    chooser.value.set_files(tmp_path / "own.png")
    page.wait_for_selector("text=your picture")
    page.click("[data-do=again]")
    page.wait_for_function("second => document.querySelector('.image .pixels').src !== second", arg=second)
    assert len({first, second, source(page, ".image .pixels")}) == 3


def test_a_pinned_neighbour_stays_for_the_next_text(page: Any) -> None:
    ask(page, "a flag")
    page.wait_for_selector(".card")
    kept = source(page, ".slot:nth-child(2) .pixels")
    page.click("[data-do=pin][data-slot='1']")
    page.wait_for_selector(".slot.pinned")
    ask(page, "the sun")
    page.get_by_role("img", name="the sun", exact=True).wait_for()
    assert source(page, ".slot.pinned .pixels") == kept and page.locator(".slot.pinned").count() == 1


def test_several_places_draw_side_by_side(page: Any, loaded: Pipeline) -> None:
    page.get_by_label("Neighbours from").locator("visible=true").click()
    page.get_by_role("option", name="flags: style=*").click()
    page.keyboard.press("Escape")
    ask(page, "a flag", steps=1)
    page.wait_for_selector(".card >> nth=5", timeout=2 * SECONDS)
    captions = page.locator(".card .image > figcaption").all_inner_texts()
    assert len(captions) == 6 and "style" not in captions[0] and all("style=" in caption for caption in captions[1:])
    del loaded


def test_a_class_a_picture_and_popular_rows_are_asked_by_clicking(page: Any, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "own.png")
    page.get_by_label("Steps").locator("visible=true").fill("1")
    page.get_by_text("Class", exact=True).click()
    page.get_by_label("Classes").click()
    page.get_by_role("option", name="flag", exact=True).click()
    page.keyboard.press("Escape")
    draw(page)
    page.get_by_role("img", name="flag", exact=True).first.wait_for()
    page.get_by_text("Picture", exact=True).first.click()
    upload(page, tmp_path / "own.png")
    page.wait_for_selector("img[src*='own.png']")
    draw(page)
    page.wait_for_selector(".card figcaption:has-text('own.png'), .card figcaption:has-text('memory')")
    page.get_by_text("Popular", exact=True).click()
    draw(page)
    page.get_by_role("img", name="unconditional").first.wait_for()


def test_the_progress_is_shown_and_a_stop_ends_it(page: Any) -> None:
    page.get_by_label("Images").locator("visible=true").fill("8")
    ask(page, "a flag", steps=20)
    page.wait_for_selector("progress")
    page.wait_for_selector(".preview")
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    page.get_by_text("stopped").wait_for()
    assert page.locator(".card").count() < 8
    page.get_by_label("Images").locator("visible=true").fill("1")
    ask(page, "the sun")
    page.get_by_role("img", name="the sun", exact=True).wait_for()


def test_what_is_wrong_is_one_line_and_the_next_click_works(page: Any) -> None:
    draw(page)
    page.get_by_text("got no text, expected one in each line").wait_for()
    ask(page, "x" * 61)
    page.get_by_text("got 61 characters in a prompt, expected at most 60").wait_for()
    ask(page, "a flag")
    page.wait_for_selector(".card")


def test_an_image_is_taken_over_painted_on_and_repainted_there_alone(page: Any, tmp_path: Path) -> None:
    ask(page, "a flag")
    page.wait_for_selector(".card")
    before = np.asarray(Image.open(saved(page, tmp_path)))
    page.locator("[data-do=edit]").first.click()
    canvas = page.locator("canvas")
    canvas.wait_for()
    box = canvas.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 4, middle, steps=4)
    page.mouse.up()
    page.get_by_label("Steps").locator("visible=true").fill("4")
    draw(page)
    page.wait_for_selector(".compare")
    page.locator(".compare input").fill("0")
    after = np.asarray(Image.open(io.BytesIO(base64.b64decode(source(page, ".compare .after").partition(",")[2]))))
    changed = (before != after).any(-1)
    side = len(before)
    assert changed[side // 2].any() and not changed[: side // 4].any() and not changed[-side // 4 :].any()


def test_a_picture_is_extended_and_varied(page: Any, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "own.png")
    page.get_by_role("tab", name="Edit").click()
    upload(page, tmp_path / "own.png")
    page.locator("canvas").wait_for()
    page.get_by_label("Steps").locator("visible=true").fill("2")
    page.get_by_text("Extend", exact=True).click()
    page.get_by_label("Bottom").fill("8")
    draw(page)
    page.wait_for_selector(".compare")
    assert page.evaluate("document.querySelector('.compare .after').naturalHeight") == 24
    page.get_by_text("Vary", exact=True).click()
    draw(page)
    page.wait_for_function("document.querySelector('.compare .after').naturalHeight === 16")


def test_a_strip_leads_from_one_text_to_another(page: Any) -> None:
    page.get_by_role("tab", name="Between").click()
    page.get_by_placeholder("a cat face").fill("a flag")
    page.get_by_placeholder("a red heart").fill("the sun")
    page.get_by_label("Images").locator("visible=true").fill("3")
    page.get_by_label("Steps").locator("visible=true").fill("2")
    draw(page)
    page.wait_for_selector(".strip > li >> nth=2")
    assert page.locator(".strip .about").all_inner_texts() == ["0%", "50%", "100%"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_width_and_can_be_used_in_the_dark(chromium: Any, loaded: Pipeline, width: int) -> None:
    with Studio({"flags": loaded}) as studio, serving(studio) as url:
        opened = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
        opened.set_default_timeout(SECONDS)
        opened.goto(url)
        for tab in ("Create", "Edit", "Between"):
            opened.get_by_role("tab", name=tab).click()
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
        opened.get_by_role("tab", name="Create").click()
        ask(opened, "a flag")
        opened.wait_for_selector(".card")
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        if width == 1280:  # one screen without scrolling
            bottom = opened.locator(".card").bounding_box()
            assert bottom["y"] + bottom["height"] <= 800
            button = opened.get_by_role("button", name="Draw", exact=True).locator("visible=true").bounding_box()
            assert button["y"] + button["height"] <= 800
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in background.strip("rgba()").split(",")[:3]) < 64
        unnamed = "[...document.querySelectorAll('input, textarea, select, button')].filter(e => e.offsetParent && \
            !(e.labels?.length || e.getAttribute('aria-label') || e.title || e.innerText.trim())).map(e => e.outerHTML)"
        assert opened.evaluate(unnamed) == []
        opened.close()
