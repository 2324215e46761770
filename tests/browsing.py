"""Pages in real Chromium: one that has an error, or asks anything of another server, fails the test that opened it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.screens import open_tab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-background-networking"]
WAIT = 60_000  # milliseconds: other tests run at the same time
OWN = ("data:", "blob:")  # what stands in the page itself
DESKTOP, PHONE = (1280, 800), (390, 844)
IMAGE = ".image > img, .image .after"


@contextmanager
def chromium() -> Iterator[Any]:
    """Yields a browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install it with 'apt-get install chromium'")
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, address: str, size: tuple[int, int] = DESKTOP, ready: str = 'role=tab[name="Create"]', **options: Any
) -> Iterator[Any]:
    """Yields a page that shows what ``ready`` selects, and checks in the end that nothing went wrong in it."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(WAIT)
    page, errors, asked = context.new_page(), [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.locator(ready).first.wait_for()
    yield page
    context.close()
    assert errors == []
    assert len(asked) > 5 and [url for url in asked if not url.startswith((address, *OWN))] == []


def tab(page: Any, name: str) -> Any:
    """Opens a tab and returns its panel."""
    open_tab(page, name)
    panel = page.locator('[role="tabpanel"]:visible')
    panel.wait_for()
    return panel


def pixels(image: Any) -> np.ndarray:
    """The pixels of an ``<img>`` whose address holds a PNG file, ``[H, W, 3] uint8``."""
    return np.asarray(Image.open(io.BytesIO(content(image.get_attribute("src")))).convert("RGB"))


def content(url: str) -> bytes:
    """The content of a data URL in Base64."""
    assert re.match(r"data:image/png;base64,", url)
    return base64.b64decode(url.partition(",")[2])


def expect(shown: Any) -> Any:
    """What is expected of a part of a page, which is waited for."""
    return pytest.importorskip("playwright.sync_api").expect(shown)


def field(panel: Any, label: str) -> Any:
    """The field for texts that has a label."""
    return panel.get_by_role("textbox", name=label).first


def number(panel: Any, label: str) -> Any:
    """The field for numbers that has a label."""
    return panel.get_by_role("spinbutton", name=label, exact=True)


def click(panel: Any, button: str) -> None:
    """Clicks a button."""
    panel.get_by_role("button", name=button, exact=True).click()


def draw(panel: Any, text: str, steps: int, **numbers: int) -> Any:
    """Draws an image of a text, and returns its card."""
    field(panel, "Text").fill(text)
    for label, value in {"Steps": steps, **numbers}.items():
        number(panel, label).fill(str(value))
    old(panel, ".card")
    click(panel, "Draw")
    card = panel.locator(".card:not([data-old])")
    card.wait_for()
    idle(panel)
    return card


def old(panel: Any, css: str) -> None:
    """Marks what is shown, so that it can be told from what comes next."""
    panel.evaluate("(panel, css) => panel.querySelectorAll(css).forEach((each) => { each.dataset.old = 'yes' })", css)


def idle(panel: Any) -> None:
    """Waits until nothing is drawn any more."""
    panel.locator(".progress").first.wait_for(state="detached")


def image_of(card: Any) -> np.ndarray:
    """The pixels of the image of a card."""
    return pixels(card.locator(IMAGE))


def upload(panel: Any, file: Path | list[Path], place: int = 0) -> None:
    """Uploads files into the field of this number."""
    panel.locator('input[type="file"]').nth(place).set_input_files(file)


def saved(card: Any, link: str, folder: Path) -> Path:
    """Saves a file of a card."""
    with card.page.expect_download() as download:
        card.get_by_role("link", name=link, exact=True).click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file
