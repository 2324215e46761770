"""The page in Chromium: the ways of asking in each tab, by clicking. What the clicks make is in test_web_clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import PHONE, WAIT, click, draw, expect, field, idle, image_of, number, opened, saved, tab, upload
from PIL import Image

from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import read_record


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A picture of a user."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    return tmp_path / "own.png"


def begin(panel: Any, text: str = "", **numbers: int) -> None:
    """Asks for an image, and does not wait for it."""
    if text:
        field(panel, "Text").fill(text)
    for label, value in numbers.items():
        number(panel, label).fill(str(value))
    click(panel, "Draw")


def test_each_line_of_a_text_becomes_an_image_beside_its_neighbours(
    page: Any, loaded: Pipeline, tmp_path: Path
) -> None:
    panel = tab(page, "Create")
    begin(panel, "a flag\nthe sun", Steps=2)
    panel.locator(".card").nth(1).wait_for()
    assert panel.locator(".card").count() == 2 and panel.locator(".card .slot").count() == 2 * loaded.k
    assert page.get_by_role("img", name="a flag", exact=True).count() == 1
    card = panel.locator(".card").first
    file = saved(card, "save", tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(loaded("a flag", steps=2)[0]))
    record = read_record(file)
    assert record["prompt"] == "a flag"
    card.locator("summary").first.click()
    assert card.get_by_text(record["neighbours"][0]["attribution"]).first.is_visible()


def test_several_places_draw_side_by_side(page: Any) -> None:
    panel = tab(page, "Create")
    panel.get_by_label("Neighbours from").click()
    page.get_by_role("option", name="flags: style=*").click()
    page.keyboard.press("Escape")
    begin(panel, "a flag", Steps=1)
    panel.locator(".card").nth(5).wait_for()
    captions = panel.locator(".card .image > figcaption").all_inner_texts()
    assert len(captions) == 6 and "style" not in captions[0] and all("style=" in caption for caption in captions[1:])


def test_a_class_a_picture_and_popular_rows_are_asked_by_clicking(page: Any, own: Path) -> None:
    panel = tab(page, "Create")
    panel.get_by_text("Class", exact=True).click()
    panel.get_by_label("Classes").click()
    page.get_by_role("option", name="flag", exact=True).click()
    page.keyboard.press("Escape")
    begin(panel, Steps=1)
    panel.get_by_role("img", name="flag", exact=True).first.wait_for()
    panel.get_by_text("Picture", exact=True).first.click()
    upload(panel, own)
    panel.locator("img[src*='own.png']").wait_for()
    begin(panel)
    panel.locator(".card figcaption", has_text="your picture").wait_for()
    panel.get_by_text("Popular", exact=True).click()
    begin(panel)
    panel.get_by_role("img", name="unconditional").first.wait_for()


def test_the_progress_is_shown_and_a_stop_ends_it(page: Any) -> None:
    panel = tab(page, "Create")
    begin(panel, "a flag", Images=8, Steps=100)
    panel.locator("progress").wait_for()
    panel.locator(".preview").wait_for()
    click(panel, "Stop")
    panel.get_by_text("stopped").wait_for()
    assert panel.locator(".card").count() < 8
    begin(panel, "the sun", Images=1, Steps=2)
    panel.get_by_role("img", name="the sun", exact=True).wait_for()


def test_what_is_wrong_is_one_line_and_the_next_click_works(page: Any) -> None:
    panel = tab(page, "Create")
    begin(panel)
    page.get_by_text("got no text, expected one in each line").wait_for()
    begin(panel, "x" * 61)
    page.get_by_text("got 61 characters in a prompt, expected at most 60").wait_for()
    draw(panel, "a flag", 1)


def test_an_image_is_taken_over_painted_on_and_repainted_there_alone(page: Any) -> None:
    card = draw(tab(page, "Create"), "a flag", 2)
    before = image_of(card)
    card.locator("[data-do=edit]").click()
    panel = page.locator('[role="tabpanel"]:visible', has=page.locator("canvas"))
    box = panel.locator("canvas").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 4, middle, steps=4)
    page.mouse.up()
    begin(panel, Steps=4)
    panel.locator(".compare").wait_for()
    changed = (before != image_of(panel.locator(".card"))).any(-1)
    side = len(before)
    assert changed[side // 2].any() and not changed[: side // 4].any() and not changed[-side // 4 :].any()


def test_a_picture_is_extended_and_varied(page: Any, own: Path) -> None:
    panel = tab(page, "Edit")
    upload(panel, own)
    panel.locator("canvas").wait_for()
    panel.get_by_text("Extend", exact=True).click()
    begin(panel, Steps=2, Bottom=8)
    panel.locator(".compare").wait_for()
    assert image_of(panel.locator(".card")).shape == (24, 16, 3)
    idle(panel)
    panel.get_by_text("Vary", exact=True).click()
    begin(panel)
    page.wait_for_function("document.querySelector('.compare .after').naturalHeight === 16", timeout=WAIT)


def test_a_strip_leads_from_one_text_to_another(page: Any) -> None:
    panel = tab(page, "Between")
    panel.get_by_placeholder("a cat face").fill("a flag")
    panel.get_by_placeholder("a red heart").fill("the sun")
    begin(panel, Images=3, Steps=2)
    panel.locator(".strip > li").nth(2).wait_for()
    assert panel.locator(".strip .about").all_inner_texts() == ["0%", "50%", "100%"]


def test_without_allow_changes_there_is_nothing_to_change_a_database_with(browser: Any, address: str) -> None:
    with opened(browser, address, PHONE) as page:
        panel = tab(page, "Database")
        expect(panel.locator(".facts dd").first).to_have_text("40")
        click(panel, "Search")
        panel.locator(".tiles li").first.wait_for()
        assert panel.get_by_role("button", name="Remove rows").count() == panel.locator(".tiles .switch").count() == 0
        scrolled = "document.querySelector('.shelf').getBoundingClientRect().top < 400"  # to the rows
        page.wait_for_function(scrolled, timeout=WAIT)
