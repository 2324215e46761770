"""The pages for users, and the command lines in their code blocks."""

from website.blocks import ROOT, RUN, blocks_of, commands, read

__all__ = ["PAGES", "ROOT", "RUN", "blocks", "commands", "read"]
PAGES = (
    *RUN,
    "docs/sampling.md",
    "docs/web.md",
    "docs/generators.md",
    "docs/own.md",
    "docs/install.md",
    "docs/large-databases.md",
    "docs/cluster.md",
    "docs/questions.md",
)


def blocks(page: str, language: str = "") -> list[str]:
    """A page's code blocks in a language."""
    return [block.text for block in blocks_of(page) if block.language == language]
