"""The last line of a run: how near the golden cases came to their tolerances."""

import pytest
from golden_cases import summary


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints it, if any golden case or layout was among the tests."""
    if line := summary():
        terminalreporter.write_line(line)
