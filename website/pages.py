"""Pages of the site that lie outside docs/, and links as they have to be on the site."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
FOUND = (
    "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md", "data/emoji/README.md",
    "models/*/*/README.md",
)  # fmt: skip
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
# <img src="a.png" width="640" alt="words"> of a page that GitHub shows, too
IMAGE = re.compile(r'<img src="([^"]+)"((?: \w+="[^"]*")*)>')
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def repository_pages() -> list[str]:
    """Returns the paths of the pages outside docs/, from the root of the repository."""
    return sorted(file.relative_to(ROOT).as_posix() for pattern in FOUND for file in ROOT.glob(pattern))


def files_of(page: str) -> Iterator[str]:
    """Yields the paths of the files that are no pages and to which a page outside docs/ links."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for link in LINK.findall(as_markdown(text)):
        target = _in_repository(page, link)
        if target is not None and (ROOT / target).is_file() and not target.startswith("docs/"):
            yield from [] if target.endswith(".md") else [target]


def on_site(path: str) -> str:
    """Returns the path on the site, before it is rendered, of a file of the repository."""
    return path.removeprefix("docs/")


def in_repository(uri: str) -> str:
    """Returns the path in the repository of a file of the site."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def with_links(text: str, uri: str) -> str:
    """Returns the Markdown of a page whose links lead to the places of their targets on the site.

    Args:
        text: the page.
        uri: its path on the site.
    """
    page = in_repository(uri)

    def moved(link: re.Match[str]) -> str:
        target = _in_repository(page, link[1])
        if target is None or not (ROOT / target).is_file():
            return link[1]
        return os.path.relpath(on_site(target), PurePosixPath(uri).parent)

    parts, end = [], 0
    for fence in [*FENCE.finditer(text), None]:
        start = len(text) if fence is None else fence.start()
        parts.append(LINK.sub(moved, as_markdown(text[end:start])))
        if fence is not None:
            parts.append(fence[0])
            end = fence.end()
    return "".join(parts)


def as_markdown(text: str) -> str:
    """Returns a text whose images are written in Markdown, so that MkDocs knows them."""

    def image(found: re.Match[str]) -> str:
        known = dict(re.findall(r' (\w+)="([^"]*)"', found[2]))
        alt = known.pop("alt", "")
        rest = " ".join(f'{key}="{value}"' for key, value in known.items())
        return f"![{alt}]({found[1]}){{ {rest} }}"

    return IMAGE.sub(image, text)


def _in_repository(page: str, link: str) -> str | None:
    """Returns the path in the repository to which a link of a page leads; None if it leads elsewhere."""
    if re.match(r"\w+:|/", link):
        return None
    path = os.path.normpath(PurePosixPath(page).parent / link)
    return None if path.startswith("..") else path
