"""The versions of dependencies: the lock file is within the bounds of pyproject.toml, and audits say what they saw."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, read
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)$", read("requirements.lock"), re.MULTILINE))
AUDIT = runpy.run_path(str(ROOT / ".ci/audit.py"))
FAULT = {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": "a fault"}
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [FAULT]}
SKIPPED = {"name": "unknown", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def test_the_lock_file_has_every_dependency_in_a_version_that_is_admitted() -> None:
    locked = {canonicalize_name(name): version for name, version in LOCKED.items()}
    assert len(LOCKED) == len([line for line in read("requirements.lock").splitlines() if line]) > 100
    extras = PROJECT["optional-dependencies"]
    for each in map(Requirement, [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"]]):
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each
    assert canonicalize_name(PROJECT["name"]) not in locked


@pytest.mark.parametrize("group", ["dependencies", *PROJECT["optional-dependencies"]])
def test_every_dependency_has_a_lowest_version(group: str) -> None:
    """Which `make lowest` installs."""
    required = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    for each in map(Requirement, required):
        assert any(bound.operator in (">=", "==") for bound in each.specifier), each


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ([GOOD], 0, ["0 known vulnerabilities in 1 packages"]),
        ([GOOD, SKIPPED], 0, ["0 known vulnerabilities in 1 packages; 1 are unknown to the service"]),
        ([GOOD, BAD], 1, ["bad 2.0: PYSEC-1, mended in 2.1", "1 known vulnerabilities in 2 packages"]),
        ([SKIPPED, SKIPPED], 3, ["nothing was audited: the service knows none of 2 packages; is it reachable?"]),
        ([], 3, ["nothing was audited: the service knows none of 0 packages; is it reachable?"]),
    ],
)
def test_an_audit_says_what_it_found(report: list[dict[str, Any]], code: int, said: list[str]) -> None:
    assert AUDIT["summary"](report) == (code, said)


def test_an_audit_that_cannot_reach_its_service_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "pip-audit"
    program.write_text("#!/bin/sh\necho 'a trace' >&2\necho 'ConnectionError: no such host' >&2\nexit 1\n")
    program.chmod(0o755)
    assert AUDIT["main"]([str(program)]) == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot be reached" in line and line.endswith("(ConnectionError: no such host)")
    report = json.dumps({"dependencies": [BAD], "fixes": []})
    program.write_text(f"#!/bin/sh\necho '{report}'\nexit 1\n")
    assert AUDIT["main"]([str(program)]) == 1
    assert "PYSEC-1" in capsys.readouterr().out
