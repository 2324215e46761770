"""The pages for users, and the command lines in their code blocks."""

import re
import shlex
from pathlib import Path

from rdm.console import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/sampling.md",
    "docs/training.md",
    "docs/databases.md",
    "docs/checkpoints.md",
    "docs/web.md",
    "docs/install.md",
)


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    """A page's code blocks in a language."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", read(page), re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def commands(page: str, language: str = "") -> list[list[str]]:
    """The words behind ``python`` of every line of a page's code blocks that starts with it, or with a console command.

    What stands in blocks without a language is run by ``test_readme.py``. Blocks in ``sh`` need pictures or time that a
    test does not have: ``test_docs.py`` has the scripts read their options.
    """
    lines = [line.partition("  #")[0].strip() for block in blocks(page, language) for line in block.splitlines()]
    words = [shlex.split(line) for line in lines if line.startswith(("python ", "rdm-"))]
    return [[*([] if first == "python" else [SCRIPTS[first]]), *further] for first, *further in words]
