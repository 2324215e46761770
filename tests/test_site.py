"""The documentation site: its tables have what the code takes, its pages ask for nothing from elsewhere."""

import contextlib
import functools
import http.server
import inspect
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsing import DESKTOP, PHONE, chromium, expect, opened

from ldm.util import _parameters, get_obj_from_str
from website.blocks import BY_TEST, ROOT, UNKNOWN, checks, summary
from website.commands import actions_of, commands_page, parser_of, scripts, subparsers_of
from website.configs import SECTIONS, config_files, files_table, keys_page, targets
from website.pages import with_links
from website.signatures import ELSEWHERE, keys_of


def test_every_command_on_the_site_is_run_by_a_test_or_says_what_it_needs() -> None:
    found = checks()
    assert {page for page, counted in found.items() if counted[UNKNOWN]} == set()
    total = sum(found.values(), Counter())
    assert total[BY_TEST] >= 17 and summary().startswith(f"{total.total()} commands on the site: {total[BY_TEST]} run")


def test_the_tables_have_every_option_of_every_command() -> None:
    page = commands_page()
    sections = dict(re.findall(r"^(?:##|###) (\S+(?: [a-z]+)?)\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE))
    for script in scripts():
        parser, name = parser_of(script), script.removeprefix("scripts/")
        for command, each in ({"": parser} | subparsers_of(parser)).items():
            table = sections[f"{name} {command}".strip()]
            for action in actions_of(each):
                assert all(f"`{option}" in table for option in action.option_strings), (script, command)
    assert "this is the command `rdm-txt2img`" in sections["txt2img.py"]
    assert "in place of &lt;logdir>/&lt;time>_&lt;name> |" in sections["main.py"]
    assert "| `--steps`, `--ddim_steps STEPS` | number of denoising steps" in sections["txt2img.py"]
    assert "| `database` | folder of the database |" in sections["build_database.py verify"]


@pytest.mark.parametrize("target", [*targets(), *SECTIONS.values()])
def test_the_tables_have_the_keys_that_configs_accept(target: str) -> None:
    """Written from the source alone, they are what the class itself says: names, defaults, and what is required."""
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    accepted = [each for each in _parameters(get_obj_from_str(target)) if each.kind not in open_ended]
    keys = keys_of(target)
    assert [key.name for key in keys] == [each.name for each in accepted]
    for key, each in zip(keys, accepted, strict=True):
        assert (key.default is None) == (each.default is each.empty), key.name
        if key.default is not None:
            assert eval(key.default, {}) == each.default, key.name  # noqa: S307 (a literal of our source)
        assert key.about and not ELSEWHERE.match(key.about), f"{key.name} of {target} is not described"


def test_every_config_and_class_has_a_place_on_the_page() -> None:
    page, table = keys_page(), files_table()
    assert [target for target in targets() if f"\n\n`{target}`\n\n" not in page] == []
    assert len(table.splitlines()) == len(config_files()) + 2
    assert "| `Mapping[str, Any] | None` |" in page
    assert "| `configs/`<br>`rdm.yaml` | Retrieval-augmented diffusion model of the emoji, the default model." in table


def test_links_lead_to_places_on_the_site() -> None:
    text = "[a](../benchmarks/README.md#retrieval), [b](https://x.org/y.md)\n\n```\n[d](../README.md)\n```\n"
    assert with_links(text, "databases.md") == text.replace("../benchmarks", "benchmarks")
    link = "[a](../../../docs/training.md#the-parts), [b](../../rarm/emoji/README.md)"
    assert with_links(link, "models/rdm/emoji/README.md") == link.replace("docs/", "")
    image = '<img src="web/phone.png" width="240" alt="A phone.">'
    assert with_links(image, "web.md") == '![A phone.](web/phone.png){ width="240" }'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    assert summary() in built.stderr
    return folder


class Loads(HTMLParser):
    """Collects the addresses that a browser loads with a page, and those of its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "link" and known.get("rel") in ("canonical", "next", "prev", "edit", "alternate"):
            return
        names = {"link": ("href",), "img": ("src", "srcset"), "a": ()}.get(tag, ("src", "data", "poster"))
        self.found += [value for name in names if (value := known.get(name))]


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert len(loads.found) >= 4
        for address in loads.found:
            assert not re.match(r"\w+:|//", address) or address.startswith("data:"), f"{page}: {address}"
            if page.name != "404.html" and not address.startswith("data:"):
                assert (page.parent / address.partition("#")[0]).resolve().is_file(), f"{page}: {address}"
    for style in site.rglob("*.css"):
        loaded = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style.read_text(encoding="utf-8"))
        assert [each for each in loaded if re.match(r"https?:|//", "".join(each))] == [], style


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yields the address of a plain server of files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


SEEN = ("", "start/", "training/", "web/", "reference/commands/", "reference/configs/", "reference/python/")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_site_works_in_a_browser(site: Path, size: tuple[int, int], colours: Any) -> None:
    """Nothing is asked of another server, no page is wider than the screen, drawings have the colours of the page."""
    with (
        chromium() as browser,
        served(site) as address,
        opened(browser, address, size, ready="h1", color_scheme=colours) as page,
    ):
        for path in SEEN:
            page.goto(f"{address}{path}")
            page.locator("h1").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], path
        page.goto(f"{address}concepts/")
        drawings = page.locator("figure.drawing svg")
        expect(drawings).to_have_count(4)
        ink = drawings.first.locator("text").first.evaluate("text => getComputedStyle(text).fill")
        assert (min(map(int, re.findall(r"\d+", ink))) > 128) == (colours == "dark"), ink


SEARCHES = {
    "proposal distribution": "The proposal distribution p_D",
    "out of memory": "Building the index runs out of memory",
    "ddim_steps": "Sampler",
    "near_duplicate": "RetrievalDataModule",
}


def test_the_search_finds_what_is_asked_for(site: Path) -> None:
    with chromium() as browser, served(site) as address, opened(browser, address, ready="h1") as page:
        for words, heading in SEARCHES.items():
            page.goto(address)
            box = page.get_by_placeholder("Search")
            box.click()
            page.get_by_text("Type to start searching").wait_for()
            box.press_sequentially(words)
            titles = page.locator(".md-search-result__item :is(h1, h2)")  # further ones of a page are folded
            titles.filter(has_text=heading).first.wait_for(state="attached")
