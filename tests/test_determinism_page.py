"""The page on determinism: every row names tests, and every test that it names is there."""

from __future__ import annotations

import ast
import re

import pytest
from documents import ROOT, read

PAGE = "docs/determinism.md"
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
ROWS = [line for line in read(PAGE).splitlines() if line.startswith("| ") and line.count("|") > 2]
CLAIMS = [row for row in ROWS if not row.startswith(("| equal to the bit", "| across"))]


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row.strip("| ").partition(" |")[0])
def test_every_row_names_tests_that_are_there(row: str) -> None:
    named = NAMED.findall(row)
    assert named and len(named) == row.count("::")
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in defined, f"{file} has no {function}"


def test_the_page_has_its_tables() -> None:
    assert len(CLAIMS) > 25 and len(NAMED.findall(read(PAGE))) == read(PAGE).count("::")
