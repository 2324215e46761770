"""The tabs Database and Inspect, used by clicking in a real browser."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import draw
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium; install Debian's package of that name", allow_module_level=True)

from rdm.loading import with_database  # noqa: E402
from rdm.sampling import ways  # noqa: E402
from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.sampling.record import save  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def studio(loaded: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("browser") / "flags"
    shutil.copytree(loaded.retriever.database.path, folder)
    with Studio({"flags": with_database(loaded, folder)}, allow_changes=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(studio: Studio) -> Iterator[str]:
    with serving(studio) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(WAIT)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(site)
    yield opened
    opened.close()
    assert faults == []
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []


def tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name).click()
    return page.locator("[role=tabpanel]:visible")


def rows(panel: Any) -> list[str]:
    """The names of the buttons of the rows that are shown."""
    return [each.get_attribute("aria-label") for each in panel.locator(".tiles .switch").all()]


def test_a_row_is_marked_counted_removed_and_gone(page: Any, studio: Studio) -> None:
    panel = tab(page, "Database")
    panel.locator(".facts dd", has_text=re.compile("^40$")).wait_for()
    panel.get_by_label("Text").fill("a flag")
    panel.get_by_role("button", name="Search").click()
    panel.locator(".tiles .switch").first.wait_for()
    first, second, *others = rows(panel)
    assert len(others) == 22 and panel.locator(".tiles img").first.get_attribute("alt") in first
    panel.get_by_role("button", name="Remove rows").click()
    for name in (first, second, second):
        panel.get_by_role("button", name=name).click()
        page.wait_for_timeout(400)
    panel.locator(f'.switch[aria-label="{first}"][aria-pressed=true]').wait_for()
    assert panel.locator(".switch[aria-pressed=true]").count() == 1
    number = re.findall(r"row (\d+)", first)[0]
    assert panel.get_by_label("Rows to remove").input_value() == number
    confirm = panel.get_by_role("button", name="Remove 1 row")
    assert not confirm.is_visible()
    panel.get_by_role("button", name="Count").click()
    panel.get_by_text("1 of 40 rows would be removed").wait_for()
    confirm.click()
    panel.get_by_text("Removed 1 row, which no search finds any more; 39 are left.").wait_for()
    assert first not in rows(panel) and not studio.pipeline().retriever.database.is_alive(int(number))
    panel.get_by_role("button", name="Search").click()
    panel.locator(".message").wait_for(state="detached")
    assert first not in rows(panel) and rows(panel)[0] == second


def test_a_picture_is_added_and_found(page: Any, tmp_path: Path) -> None:
    grey = np.asarray(Image.radial_gradient("L").resize((20, 16)))
    Image.fromarray(np.stack([grey, 255 - grey, grey // 2], axis=2)).save(tmp_path / "ring.png")
    panel = tab(page, "Database")
    panel.get_by_role("button", name="Add pictures").click()
    panel.get_by_text("Drop File Here").wait_for()
    panel.locator("input[type=file]").last.set_input_files(tmp_path / "ring.png")
    panel.get_by_text("ring.png").first.wait_for()
    panel.get_by_label("Licence", exact=True).fill("CC0-1.0")
    panel.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("picture 1: got no attribution").wait_for()
    panel.get_by_label("Attribution").fill("A. Uthor")
    panel.get_by_label("Captions").fill("a green ring")
    panel.get_by_role("button", name="Add", exact=True).click()
    panel.get_by_text("Added 1 row, which every search finds from now on.").wait_for()
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "ring.png")
    page.wait_for_timeout(1000)
    panel.get_by_role("button", name="Search").click()
    panel.locator(".message").wait_for(state="detached")
    assert "a green ring" in rows(panel)[0]
    tile = panel.locator(".tiles li").first
    tile.locator("summary").click()
    assert "CC0-1.0" in tile.inner_text() and "A. Uthor" in tile.inner_text()


def test_an_image_says_what_it_is_and_is_made_again_bit_equal(page: Any, studio: Studio, tmp_path: Path) -> None:
    pipeline = studio.pipeline()
    samples = draw(ways.texts, pipeline, ["a red flag"], k=2, seed=3, steps=3)
    save(samples, pipeline, tmp_path, "made")
    panel = tab(page, "Inspect")
    make = panel.get_by_role("button", name="Make it again")
    assert make.is_disabled()
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "made-000.png")
    panel.get_by_text("a red flag (text)").wait_for()
    assert panel.locator("ul[aria-label='neighbours of the picture'] li").count() == 2
    assert panel.locator("ul[aria-label='nearest rows'] li").count() == 8
    make.click()
    panel.get_by_text("Made again: all 256 pixels are equal.").wait_for()
    sources = [each.get_attribute("src") for each in panel.locator(".pair img").all()]
    for number, source in enumerate(sources):
        (tmp_path / f"{number}.png").write_bytes(base64.b64decode(source.partition(",")[2]))
    given, again = (np.asarray(Image.open(tmp_path / f"{number}.png")) for number in (0, 1))
    np.testing.assert_array_equal(given, again)
    np.testing.assert_array_equal(given, np.asarray(Image.open(tmp_path / "made-000.png")))


def test_a_picture_from_elsewhere_and_a_file_that_is_none(page: Any, studio: Studio, tmp_path: Path) -> None:
    (pixels,) = studio.pipeline().retriever.database.patches([7])
    Image.fromarray(pixels).save(tmp_path / "elsewhere.png")
    panel = tab(page, "Inspect")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "elsewhere.png")
    panel.get_by_text("This picture has no record").wait_for()
    panel.get_by_text("A copy: the similarity to the nearest row, 7, is").wait_for()
    assert panel.get_by_role("button", name="Make it again").is_disabled()


def test_without_allow_changes_there_is_nothing_to_change_a_database_with(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.get_by_role("tab", name="Create").wait_for()
    page.locator(".overflow-menu button").first.click()
    page.locator(".overflow-dropdown button", has_text="Database").click()
    panel = page.locator("[role=tabpanel]:visible")
    panel.get_by_role("button", name="Search").click()
    panel.locator(".tiles li").first.wait_for()
    assert panel.get_by_role("button", name="Remove rows").count() == panel.locator(".tiles .switch").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.wait_for_function("document.querySelector('.shelf').getBoundingClientRect().top < 400")  # scrolled to the rows
    page.close()
