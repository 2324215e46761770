"""Takes the pictures of docs/web.md: starts the page of the shipped model and clicks through it with Chromium.

It needs playwright and Debian's package chromium, and takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.command_line import ArgumentParser, command_line, folder
from ldm.files import atomic_path

WIDE, NARROW = (1280, 800), (390, 844)
PATIENCE = 180_000  # milliseconds until an image has to be there


def visible(page: Any, name: str) -> Any:
    """Returns the button or field of the open tab that has a name."""
    found = page.get_by_role("button", name=name, exact=True).or_(page.get_by_label(name, exact=True))
    return found.locator("visible=true").first


def draw(page: Any, text: str) -> None:
    """Draws what a text asks for, and waits until the image is there."""
    page.get_by_placeholder("a red guitar").fill(text)
    visible(page, "Draw").click()
    page.wait_for_selector(f".card >> nth={text.count(chr(10))}")


def create(page: Any) -> None:
    """One neighbour is switched off and another one replaced, and the image is drawn again."""
    draw(page, "a cat face")
    page.click("[data-do=switch][data-slot='1']")
    page.wait_for_selector(".slot.off")
    page.click("[data-do=swap][data-slot='2']")
    visible(page, "Search the database").fill("a dog face")
    visible(page, "Search").click()
    page.wait_for_selector(".found li")
    page.locator(".found button").nth(1).click()
    page.wait_for_selector(".slot.new")
    page.click("[data-do=again]")
    page.wait_for_selector(".before")


def styles(page: Any) -> None:
    """One text with neighbours of four styles."""
    field = page.get_by_label("Neighbours from").locator("visible=true")
    page.get_by_label("Remove emoji").or_(page.get_by_role("button", name="Remove")).first.click()
    for style in ("fluent", "noto", "openmoji-line", "twemoji"):
        field.click()
        field.fill(style)
        page.get_by_role("option", name=f"emoji: style={style}", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_placeholder("a red guitar").fill("a cat face")
    visible(page, "Draw").click()
    page.wait_for_selector(".card >> nth=3")


def edit(page: Any) -> None:
    """The mouth of a cat is repainted with the neighbours of a dog."""
    draw(page, "a cat face")
    page.click("[data-do=edit]")
    page.get_by_placeholder("a dog face").fill("a dog face")
    page.locator("canvas").wait_for()
    box = page.locator("canvas").bounding_box()
    way = [(0.32, 0.62), (0.68, 0.62), (0.62, 0.72), (0.38, 0.72), (0.5, 0.82)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in way]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()
    visible(page, "Draw").click()
    page.wait_for_selector(".compare")
    page.locator(".compare input").fill("35")


def between(page: Any) -> None:
    """A strip from a cat to a heart."""
    page.get_by_role("tab", name="Between").click()
    page.get_by_placeholder("a cat face").fill("a cat face")
    page.get_by_placeholder("a red heart").fill("a red heart")
    visible(page, "Draw").click()
    page.wait_for_selector(".strip > li >> nth=6")


def phone(page: Any) -> None:
    """The same page on a phone, in the dark."""
    draw(page, "a red guitar")


SCENES: dict[str, tuple[Callable[[Any], None], tuple[int, int], Any]] = {
    "create": (create, WIDE, "light"),
    "styles": (styles, WIDE, "light"),
    "edit": (edit, WIDE, "light"),
    "between": (between, WIDE, "light"),
    "phone": (phone, NARROW, "dark"),
}


def save(picture: bytes, path: Path) -> None:
    """Writes a picture as a small PNG file."""
    with atomic_path(path) as temporary, Image.open(io.BytesIO(picture)) as opened:
        opened.convert("RGB").save(temporary, format="png", optimize=True)


@command_line
def main() -> None:
    """Takes all pictures, or those of some scenes."""
    p = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scenes", nargs="*", choices=[[], *SCENES], help="what is shown; everything if not given")
    p.add_argument("--output", type=folder, default="docs/web", help="the folder of the pictures")
    args = p.parse_args()
    from playwright.sync_api import sync_playwright

    from rdm.loading import SHIPPED
    from rdm.web.server import serving
    from rdm.web.studio import Studio

    with Studio.open(str(SHIPPED)) as studio, serving(studio) as address, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in args.scenes or SCENES:
            scene, (width, height), colours = SCENES[name]
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            scene(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            save(page.screenshot(full_page=name == "phone"), Path(args.output) / f"{name}.png")
            page.close()
            print(f"{args.output}/{name}.png", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
