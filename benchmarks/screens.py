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


def open_tab(page: Any, name: str) -> None:
    """Opens a tab; those for which the screen is too narrow stand in a menu."""
    button = page.get_by_role("tab", name=name, exact=True)
    if not button.count():
        page.get_by_role("button", name="More tabs").click()
        button = page.get_by_role("button", name=name, exact=True)
    button.click()


def fill(page: Any, placeholder: str, text: str) -> None:
    """Writes into the field of the open tab that shows a placeholder."""
    page.get_by_placeholder(placeholder, exact=True).locator("visible=true").fill(text)


def draw(page: Any, text: str) -> None:
    """Draws what a text asks for, and waits until the image is there."""
    fill(page, "a red guitar", text)
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
    fill(page, "a red guitar", "a cat face")
    visible(page, "Draw").click()
    page.wait_for_selector(".card >> nth=3")


def edit(page: Any) -> None:
    """The mouth of a cat is repainted with the neighbours of a dog."""
    draw(page, "a cat face")
    page.click("[data-do=edit]")
    page.locator("canvas").wait_for()
    fill(page, "a dog face", "a dog face")
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
    open_tab(page, "Between")
    fill(page, "a cat face", "a cat face")
    fill(page, "a red heart", "a red heart")
    visible(page, "Draw").click()
    page.wait_for_selector(".strip > li >> nth=6")


def database(page: Any) -> None:
    """The rows nearest to a text."""
    open_tab(page, "Database")
    panel = page.locator('[role="tabpanel"]:visible')
    fill(page, "a red guitar", "a red guitar")
    visible(page, "Search").click()
    panel.locator(".tiles li").first.wait_for()


def inspect(page: Any) -> None:
    """An image is saved and made again, bit for bit."""
    draw(page, "a red guitar")
    with page.expect_download() as saved:
        page.get_by_role("link", name="save", exact=True).click()
    open_tab(page, "Inspect")
    panel = page.locator('[role="tabpanel"]:visible')
    file: Any = {"name": saved.value.suggested_filename, "mimeType": "image/png"}
    file["buffer"] = Path(saved.value.path()).read_bytes()
    panel.locator('input[type="file"]').first.set_input_files(file)
    panel.locator(".record").wait_for()
    visible(page, "Make it again").click()
    panel.get_by_text("pixels are equal").wait_for()


def phone(page: Any) -> None:
    """The same page on a phone, in the dark."""
    draw(page, "a red guitar")


SCENES: dict[str, tuple[Callable[[Any], None], tuple[int, int], Any]] = {
    "create": (create, WIDE, "light"),
    "styles": (styles, WIDE, "light"),
    "edit": (edit, WIDE, "light"),
    "between": (between, WIDE, "light"),
    "database": (database, WIDE, "light"),
    "inspect": (inspect, WIDE, "light"),
    "phone": (phone, NARROW, "dark"),
}
COLOURS = 256  # of a picture, so that its file is small


def save(picture: bytes, path: Path) -> None:
    """Writes a picture as a PNG file of few colours, which is small."""
    with atomic_path(path) as temporary, Image.open(io.BytesIO(picture)) as opened:
        few = opened.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(temporary, format="png", optimize=True)


@command_line
def main() -> None:
    """Takes all pictures, or those of some scenes."""
    p = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scenes", nargs="*", choices=[[], *SCENES], help="what is shown; everything if not given")
    p.add_argument("--output", type=folder, default="docs/web", help="the folder of the pictures")
    p.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="another size for every picture")
    p.add_argument("--colours", choices=["light", "dark"], help="other colours for every picture")
    args = p.parse_args()
    from playwright.sync_api import sync_playwright

    from rdm.loading import SHIPPED
    from rdm.web.server import serving
    from rdm.web.studio import Studio

    with Studio.open(str(SHIPPED)) as studio, serving(studio) as address, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in args.scenes or SCENES:
            scene, size, colours = SCENES[name]
            width, height = args.size or size
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=args.colours or colours)
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.get_by_role("tab", name="Create", exact=True).wait_for()
            scene(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            save(page.screenshot(full_page=width == NARROW[0]), Path(args.output) / f"{name}.png")
            page.close()
            print(f"{args.output}/{name}.png", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
