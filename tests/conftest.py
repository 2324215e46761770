"""What all tests share: one thread a process, random numbers that are each test's own, and the last line of a run."""

import os
import random

os.environ["OMP_NUM_THREADS"] = "1"  # read as torch and faiss load: here, in workers, in the processes of tests

import golden_cases  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Starts the global generators anew, so that a test draws the same whatever ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Has a worker of pytest-xdist send what it compared."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["golden"] = golden_cases.compared()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Adds what a worker compared; one that crashed has sent nothing."""
    golden_cases.add(getattr(node, "workeroutput", {}).get("golden", {}))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how near the golden cases came to their tolerances, if any case or layout was among the tests."""
    if line := golden_cases.summary():
        terminalreporter.write_line(line)
