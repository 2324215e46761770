"""What clicks in Chromium change: neighbours, masks, rows of the database, and images made again, bit by bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import (
    DESKTOP,
    IMAGE,
    PHONE,
    WAIT,
    click,
    content,
    draw,
    expect,
    field,
    idle,
    image_of,
    number,
    old,
    opened,
    pixels,
    saved,
    tab,
    upload,
)
from PIL import Image
from toy import references_config, ship

pytest.importorskip("gradio")

from rdm.sampling import ways  # noqa: E402
from rdm.sampling.neighbours import with_neighbours  # noqa: E402
from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.sampling.settings import Settings  # noqa: E402
from rdm.web.limits import Limits  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402

LIMITS = Limits(images=8, neighbours=8, steps=20, side=32, upload_bytes=200_000, pixels=40_000)
TABS = ("Create", "Edit", "Between", "Database", "Inspect")
# What can be used or seen and has no name for a screen reader.
NAMELESS = """() => [...document.querySelectorAll('input, textarea, button, img, canvas')]
  .filter((element) => element.checkVisibility() && !(element.alt || element.labels?.length || element.title
    || element.getAttribute('aria-label') || element.getAttribute('aria-labelledby') || element.innerText?.trim()))
  .map((element) => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def changeable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio of a tiny model over a database that these tests change."""
    folder = tmp_path_factory.mktemp("clicks")
    pipeline = Pipeline.load(str(ship(folder / "model", references_config(folder))))
    with Studio({"flags": pipeline}, LIMITS, allow_changes=True) as studio:
        yield studio


@pytest.fixture(scope="module")
def address(changeable: Studio) -> Iterator[str]:
    with serving(changeable) as url:
        yield url


@pytest.fixture
def own(changeable: Studio) -> Pipeline:
    """The model with the database as it is now."""
    return changeable.pipeline()


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture of 16 x 16 pixels of any colours."""
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return file


@contextmanager
def changing(card: Any) -> Iterator[None]:
    """Waits in the end until a card has another image."""
    image = card.locator(IMAGE)
    before = image.get_attribute("src")
    yield
    expect(image).not_to_have_attribute("src", before, timeout=WAIT)


def rows_of(own: Pipeline, text: str, k: int | None = None) -> list[int]:
    return ways.texts(own, [text], k=k).retrieved.rows[0].tolist()


def of_python(own: Pipeline, text: str, *chosen: Any) -> np.ndarray:
    """The image of a text in two steps with these neighbours."""
    request = with_neighbours(own, ways.texts(own, [text]), 0, list(chosen))
    return np.asarray(own._pictures(request, Settings(steps=2), None)[0])


def test_neighbours_that_are_switched_make_the_bits_of_python(page: Any, own: Pipeline, noise: Path) -> None:
    panel = tab(page, "Create")
    card = draw(panel, "a flag", 2)
    rows, found = rows_of(own, "a flag"), rows_of(own, "the sun", 10)
    other = next(row for row in found if row not in rows)

    def again() -> np.ndarray:
        with changing(card):
            card.get_by_role("button", name="draw a flag again").click()
        return image_of(card)

    def slot(place: int, what: str) -> Any:
        return card.locator(f'[data-do="{what}"][data-slot="{place}"]')

    first = image_of(card)
    np.testing.assert_array_equal(first, of_python(own, "a flag", *rows))
    slot(0, "switch").click()
    card.locator(".slot.off").wait_for()
    np.testing.assert_array_equal(again(), of_python(own, "a flag", *rows[1:]))
    np.testing.assert_array_equal(pixels(card.locator(".before img")), first)
    slot(0, "switch").click()
    card.locator(".slot.off").wait_for(state="detached")
    np.testing.assert_array_equal(again(), first)
    slot(0, "swap").click()
    field(panel, "Search the database").fill("the sun")
    click(panel, "Search")
    panel.locator(".found button").nth(found.index(other)).click()
    card.locator(".slot.new").wait_for()
    np.testing.assert_array_equal(again(), of_python(own, "a flag", other, *rows[1:]))
    slot(1, "swap").click()
    with page.expect_file_chooser() as chooser:
        click(panel, "Upload")
    chooser.value.set_files(noise)
    card.locator(".slot.new").nth(1).wait_for()
    np.testing.assert_array_equal(again(), of_python(own, "a flag", other, Image.open(noise)))
    slot(0, "pin").click()
    card.locator(".slot.pinned").wait_for()
    nearest = next(row for row in found if row != other)
    np.testing.assert_array_equal(image_of(draw(panel, "the sun", 2)), of_python(own, "the sun", other, nearest))


def stroke(page: Any, canvas: Any) -> np.ndarray:
    """Paints a line across a canvas; returns where the paint covers a pixel, ``[H, W] bool``."""
    box = canvas.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], middle, steps=5)
    with page.expect_response(lambda answer: "/run/" in answer.url or "/queue/" in answer.url):
        page.mouse.up()
    paint = Image.open(io.BytesIO(content(canvas.evaluate("canvas => canvas.toDataURL('image/png')"))))
    return np.asarray(paint)[..., 3] >= 128


def make_again(panel: Any) -> None:
    click(panel, "Make it again")
    panel.get_by_text("all 256 pixels are equal").wait_for()


def test_a_painted_mask_is_repainted_with_the_bits_of_python_and_made_again(
    page: Any, own: Pipeline, noise: Path, tmp_path: Path
) -> None:
    panel = tab(page, "Edit")
    upload(panel, noise)
    canvas = panel.locator("canvas")
    canvas.wait_for()
    painted = stroke(page, canvas)
    assert 8 < painted.sum() < 128
    card = draw(panel, "a flag", 3)
    mask = Image.fromarray(np.where(painted, 255, 0).astype(np.uint8)).convert("RGB")
    (wanted,) = own.edit(Image.open(noise), "a flag", mask=mask, steps=3)
    np.testing.assert_array_equal(image_of(card), np.asarray(wanted))
    before = pixels(card.locator(".compare img:not(.after)"))
    np.testing.assert_array_equal(before, np.asarray(Image.open(noise)))
    card.get_by_role("slider").focus()
    page.keyboard.press("Home")
    assert card.locator(".compare").evaluate("box => box.style.getPropertyValue('--cut')") == "0%"
    image, *sources = (saved(card, link, tmp_path) for link in ("save", "save picture", "save mask"))
    np.testing.assert_array_equal(np.asarray(Image.open(sources[1])), np.asarray(mask))
    panel = tab(page, "Inspect")
    upload(panel, image)
    panel.get_by_text("made from: a picture that was edited, a mask").wait_for()
    upload(panel, sources, 1)
    for file in sources:
        panel.get_by_text(file.stem).first.wait_for()
    make_again(panel)


def search(panel: Any, text: str, count: int) -> list[str]:
    """Searches the database; returns the names of the rows that are found."""
    field(panel, "Text").fill(text)
    number(panel, "Rows").fill(str(count))
    old(panel, ".tiles")
    click(panel, "Search")
    tiles = panel.locator(".tiles:not([data-old]) button")
    expect(tiles).to_have_count(count, timeout=WAIT)
    return [tile.get_attribute("aria-label").partition(":")[0] for tile in tiles.all()]


def test_a_removed_row_is_gone_from_search_and_from_drawing(page: Any, changeable: Studio, own: Pipeline) -> None:
    rows, count = rows_of(own, "the sun", 5), own.retriever.database.living_count
    panel = tab(page, "Database")
    found = search(panel, "the sun", 5)
    assert [name.split(",")[0] for name in found] == [f"row {row}" for row in rows]
    panel.get_by_role("button", name="Remove rows").click()
    for place, marked in ((0, rows[:1]), (1, rows[:2]), (1, rows[:1])):  # a second click takes the mark away
        panel.locator(".tiles button").nth(place).click()
        expect(field(panel, "Rows")).to_have_value(", ".join(map(str, marked)), timeout=WAIT)
    expect(panel.locator(".tiles button[aria-pressed=true]")).to_have_count(1)
    confirm = panel.get_by_role("button", name="Remove 1 row")
    assert not confirm.is_visible()
    click(panel, "Count")
    panel.get_by_text(f"1 of {count} rows would be removed").wait_for()
    confirm.click()
    panel.get_by_text(f"{count - 1} are left").wait_for()
    expect(page.locator(".head")).to_contain_text(f"({count - 1} pictures)")
    left = search(panel, "the sun", 6)
    assert left[:4] == found[1:] and found[0] not in left
    card = draw(tab(page, "Create"), "the sun", 2)
    now = changeable.pipeline()
    np.testing.assert_array_equal(image_of(card), of_python(now, "the sun", *rows[1 : now.k + 1]))


def test_an_added_picture_is_found_at_once(page: Any, own: Pipeline, noise: Path) -> None:
    row, count = len(own.retriever.database), own.retriever.database.living_count
    panel = tab(page, "Database")
    panel.get_by_role("button", name="Add pictures").click()
    upload(panel, noise, 1)
    panel.get_by_text("noise").first.wait_for()
    field(panel, "Licence").fill("CC0-1.0")
    click(panel, "Add")
    page.get_by_text("picture 1: got no attribution").wait_for()
    for label, words in (("Attribution", "a test"), ("Captions", "coloured noise")):
        field(panel, label).fill(words)
    click(panel, "Add")
    panel.get_by_text("Added 1 row").wait_for()
    expect(page.locator(".head")).to_contain_text(f"({count + 1} pictures)")
    upload(panel, noise)
    panel.locator('img[src*="noise"]').first.wait_for()
    assert search(panel, "", 1) == [f"row {row}, coloured noise"]
    panel.locator(".tiles summary").click()
    said = panel.locator(".tiles li").inner_text()
    assert all(words in said for words in ("1.00 coloured noise", "CC0-1.0", "a test"))


def test_an_image_is_made_again_with_equal_bits(page: Any, tmp_path: Path) -> None:
    card = draw(tab(page, "Create"), "a flag", 3, Seed=7)
    first = image_of(card)
    file = saved(card, "save", tmp_path)
    assert file.name == "a-flag-7-0.png"
    panel = tab(page, "Inspect")
    upload(panel, file)
    panel.locator(".record").wait_for()
    said = panel.locator(".record").inner_text()
    assert "a flag" in said and "steps 3" in said
    make_again(panel)
    for image in panel.locator(".pair img").all():
        np.testing.assert_array_equal(pixels(image), first)


def test_a_picture_from_elsewhere_shows_its_nearest_rows(page: Any, own: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    nearest = ways.image(own, Image.open(tmp_path / "red.png"), 1, k=8).retrieved.rows[0].tolist()
    panel = tab(page, "Inspect")
    upload(panel, tmp_path / "red.png")
    panel.get_by_text("This picture has no record").wait_for()
    assert panel.locator(".tiles li").count() == 8
    for row, tile in zip(nearest, panel.locator(".tiles li").all(), strict=True):
        tile.locator("summary").click()
        assert f"row {row}\n" in tile.inner_text()
    assert panel.get_by_role("button", name="Make it again").is_disabled()
    (row,) = nearest[:1]
    Image.fromarray(own.retriever.database.patches([row])[0]).save(tmp_path / "row.png")
    panel.get_by_role("button", name="Clear").or_(panel.get_by_role("button", name="Remove")).first.click()
    upload(panel, tmp_path / "row.png")
    panel.get_by_text(f"A copy: the similarity to the nearest row, {row}, is").wait_for()


def test_the_main_path_needs_the_keyboard_alone(page: Any) -> None:
    panel = tab(page, "Create")
    field(panel, "Text").focus()
    page.keyboard.type("a flag")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Draw"
    page.keyboard.press("Enter")
    panel.locator(".card").wait_for()
    idle(panel)
    panel.locator(".slot .switch").first.focus()
    page.keyboard.press("Space")
    panel.locator(".slot.off").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_every_tab_fits_its_screen_in_the_dark_and_has_names_for_everything(
    browser: Any, address: str, size: tuple[int, int]
) -> None:
    shown = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    with opened(browser, address, size, color_scheme="dark") as page:
        for name in TABS:
            tab(page, name)
            wide, high = page.evaluate(shown)
            assert wide <= size[0], name
            assert size == PHONE or high <= size[1], name
            assert page.evaluate(NAMELESS) == [], name
        draw(tab(page, "Create"), "a flag", 1)
        wide, high = page.evaluate(shown)
        assert wide <= size[0] and (size == PHONE or high <= size[1])
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in background.strip("rgba()").split(",")[:3]) < 64


def test_the_description_of_the_endpoints_opens_without_an_error(page: Any) -> None:
    with page.expect_response("**/mcp/schema"), page.expect_response("**/monitoring/summary"):
        page.get_by_role("button", name="Use via API").click()
    page.get_by_text("/search_rows").first.wait_for()
