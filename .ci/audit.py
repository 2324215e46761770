"""Says which installed packages have known vulnerabilities, or in one line that this could not be found out.

pip-audit does the work. It reports no vulnerability also where its service does not know the packages, as behind a
mirror of the index; here that is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3  # exit codes


def summary(dependencies: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
    """Returns the exit code for a report of pip-audit, and the lines to print.

    Args:
        dependencies: its ``dependencies``: each with ``name``, and ``version`` and ``vulns``, or ``skip_reason``.
    """
    audited = [each for each in dependencies if "skip_reason" not in each]
    lines = []
    for each in audited:
        for fault in each["vulns"]:
            mended = ", ".join(fault["fix_versions"]) or "no version yet"
            lines.append(f"{each['name']} {each['version']}: {fault['id']}, mended in {mended}")
    if not audited:
        return UNKNOWN, [
            f"nothing was audited: the service knows none of {len(dependencies)} packages; is it reachable?"
        ]
    skipped = len(dependencies) - len(audited)
    unknown = f"; {skipped} are unknown to the service" if skipped else ""
    lines.append(f"{len(lines)} known vulnerabilities in {len(audited)} packages{unknown}")
    return VULNERABLE if len(lines) > 1 else CLEAN, lines


def main(command: Sequence[str]) -> int:
    """Runs pip-audit with its options, prints what it found, and returns the exit code."""
    words = [*command, "--format", "json", "--progress-spinner", "off"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 (from the Makefile)
    try:
        code, lines = summary(json.loads(ended.stdout)["dependencies"])
    except (ValueError, KeyError):
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        code, lines = UNKNOWN, [f"nothing was audited: the service cannot be reached ({said[:200]})"]
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
