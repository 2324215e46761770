"""The code blocks of pages, the commands in them, and how each command is checked."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rdm.console import SCRIPTS
from website.pages import repository_pages

ROOT = Path(__file__).resolve().parents[1]
# Pages whose blocks without a language are run by tests/test_readme.py, and the page whose commands drew its pictures.
RUN = (
    "README.md",
    *(f"docs/{name}.md" for name in ("start", "databases", "checkpoints", "compvis", "training", "evaluation")),
)
DRAWN = "docs/gallery.md"
# What a line of a code block begins with if it is a command.
CHECKED = ("python", *SCRIPTS)
PROGRAMS = (*CHECKED, "make", "pip", "torchrun", "srun", "tensorboard", "mkdir")
BLOCK = re.compile(r'^ *```(\w*)(?: title="([^"]*)")?\n(.*?)^ *```', re.DOTALL | re.MULTILINE)
# How a command is checked.
BY_TEST, BY_GALLERY, MARKED, UNKNOWN = "run by tests", "run by the gallery", "marked with what they need", "neither"


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: the word behind its first backticks; empty if there is none.
        title: what stands in the bar above it; empty if there is none.
        text: its lines.
    """

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines that begin with a program, without comments; none in Python or YAML."""
        lines = [line.partition("  #")[0].strip() for line in self.text.splitlines()]
        return [line for line in lines if self.language in ("", "sh") and line.split(" ")[0] in PROGRAMS]


def read(page: str) -> str:
    """Returns the text of a page, whose path starts from the root of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    """Returns the code blocks of a page."""
    return [Block(*found) for found in BLOCK.findall(read(page))]


def commands(page: str, language: str = "") -> list[list[str]]:
    """Returns the words behind ``python`` of every command of a page's blocks in a language.

    A console command stands for its script.
    """
    lines = [line for block in blocks_of(page) if block.language == language for line in block.commands]
    words = [shlex.split(line) for line in lines if line.split(" ")[0] in CHECKED]
    return [[*([] if first == "python" else [SCRIPTS[first]]), *rest] for first, *rest in words]


def site_pages() -> list[str]:
    """Returns the paths of the pages on the site."""
    return sorted([file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").rglob("*.md")] + repository_pages())


def checks() -> dict[str, Counter[str]]:
    """Returns how many commands of each page of the site are checked in which way."""
    found: dict[str, Counter[str]] = {}
    for page in site_pages():
        found[page] = Counter()
        for block in blocks_of(page):
            how = MARKED if block.title.startswith("needs: ") else UNKNOWN
            if block.language == "":
                how = BY_TEST if page in RUN else BY_GALLERY if page == DRAWN else how
            found[page][how] += len(block.commands)
    return found


def summary() -> str:
    """Returns the number of commands on the site, and how many are checked in which way."""
    total = sum(checks().values(), Counter())
    parts = [f"{total[how]} {how}" for how in (BY_TEST, BY_GALLERY, MARKED, UNKNOWN) if total[how]]
    return f"{total.total()} commands on the site: {', '.join(parts)}"
