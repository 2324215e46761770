"""What MkDocs does beyond its plugins: pages outside docs/, tables made from the code, and drawings within the page.

mkdocs.yml names this file. MkDocs calls its functions by their names.
"""

from __future__ import annotations

import re
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

from website import blocks, pages
from website.commands import commands_page
from website.configs import files_table, keys_page, sections_table, settings_table

LOG = get_plugin_logger(__name__)
# The comments in pages that tables take the place of.
TABLES = {
    "commands": commands_page,
    "config files": files_table,
    "config sections": sections_table,
    "config keys": keys_page,
    "settings": settings_table,
}
DRAWING = re.compile(r'<p><img alt="([^"]*)" src="[./]*(drawings/[\w-]+\.svg)" ?/?></p>')


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages outside docs/ and the pictures on them."""
    found = pages.repository_pages()
    for path in [*found, *sorted({file for page in found for file in pages.files_of(page)})]:
        files.append(File.generated(config, pages.on_site(path), abs_src_path=str(pages.ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in the tables of a page, and leads its links to where their targets are on the site."""
    for name, table in TABLES.items():
        comment = f"<!-- table: {name} -->"
        if comment in markdown:
            markdown = markdown.replace(comment, table())
    return pages.with_links(markdown, page.file.src_uri)


def on_post_build(**_: Any) -> None:
    """Says how the commands on the site are checked."""
    LOG.info(blocks.summary())


def on_page_content(html: str, **_: Any) -> str:
    """Puts drawings into the page, where they have its colours, and writes names in docstrings as code."""

    def drawing(found: re.Match[str]) -> str:
        svg = (pages.ROOT / "docs" / found[2]).read_text(encoding="utf-8")
        return f'<figure class="drawing" role="img" aria-label="{found[1]}">{svg}</figure>'

    return re.sub(r":(?:class|func|meth|mod|attr|data):(?=<code>)", "", DRAWING.sub(drawing, html))
