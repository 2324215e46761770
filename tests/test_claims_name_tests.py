"""Pages whose claims name the tests that show them: every row does, and every test that is named is there."""

from __future__ import annotations

import ast
import re

import pytest
from documents import ROOT, read

PAGE = "docs/determinism.md"
SECURITY = "SECURITY.md"
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


def test_what_is_promised_of_hostile_files_names_tests_that_are_there() -> None:
    rows = [line for line in read(SECURITY).splitlines() if line.startswith("| **")]
    assert len(rows) == 6
    for row in rows:
        *_, shown, _ = row.split("|")
        named = re.findall(r"`([\w/]+\.py)(?:::(test_\w+))?`", shown)
        assert named and len(named) == shown.count(".py")
        for file, function in named:
            assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (file, function)


def test_the_page_has_its_tables() -> None:
    assert len(CLAIMS) > 25 and len(NAMED.findall(read(PAGE))) == read(PAGE).count("::")
