"""The processes of a run: which one is the first, and how a run ends if one of them does.

Lightning starts the further processes of a machine with the command line of the first one. With ``torchrun`` or SLURM
all are started from outside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytorch_lightning as pl

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
RUN = "LDM_RUN"  # tells further processes of the machine the folder of the run
# Words in errors of torch about other processes that do not answer.
CONNECTION = ("gloo", "nccl", "connection", "socket", "peer", "timed out", "tcpstore")
PARENT = os.getppid()
SOON, LATE = 3.0, 5.0  # seconds until another process has ended, and until waiting for it is given up


def is_first() -> bool:
    """Returns whether this is the first process of a run, or the only one."""
    return all(os.environ.get(rank, "0") == "0" for rank in RANKS)


def run_of_first() -> Path | None:
    """Returns the run folder of the first process if that one started this one, else None."""
    return Path(os.environ[RUN]) if RUN in os.environ and not is_first() else None


def leave_words_to_first() -> None:
    """Lets processes other than the first say nothing but warnings and errors."""
    if not is_first():
        for name in ("ldm", "rdm", "main"):
            logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def ended_together(trainer: pl.Trainer, run: Path) -> Iterator[None]:
    """Ends the run in the ``with`` block if one of its processes ends, with one line about it from one process.

    A process that waits for one that is gone fails at once on CPUs. GPUs may wait for very long, so that a thread looks
    after the other processes of the machine, and ends this one.

    Raises:
        ValueError: another process is gone; says how to go on.
        SystemExit: another process has said why the run ends.
    """
    before = os.environ.get(RUN)
    os.environ[RUN] = str(run)
    watch = _Watch(trainer, run)
    watch.start()
    try:
        yield
    except Exception as error:
        if trainer.world_size > 1 and _is_of_connection(error):
            watch.end_run(error)
        elif run_of_first() and _within(SOON, _is_orphan):
            sys.exit(2)  # the first process has the same error
        raise
    finally:
        watch.over.set()
        os.environ.pop(RUN)
        if before is not None:
            os.environ[RUN] = before


class _Watch(threading.Thread):
    """Looks after the other processes of this machine until ``over`` is set."""

    def __init__(self, trainer: pl.Trainer, run: Path) -> None:
        super().__init__(daemon=True)
        self.trainer, self.checkpoint, self.resumed = trainer, run / "checkpoints" / "last.ckpt", run
        self.over = threading.Event()

    def run(self) -> None:
        """Ends this process some seconds after another one has ended, unless it ends by itself."""
        while not self.over.wait(0.2):
            if (what := self.gone()) is None:
                continue
            if not self.over.wait(LATE):
                if what and self.speaks():
                    os.write(2, f"error: {self.sentence(what)}\n".encode())
                os._exit(2)
            return

    def gone(self) -> str | None:
        """Returns which process of this machine ended, "" if it has said so itself, or None if all are there."""
        if run_of_first():
            return "process 0 ended" if _is_orphan() else None
        launched: list[Any] = getattr(self.trainer.strategy.launcher, "procs", [])
        self._relieve()
        # A run that is told to stop by a signal ends with these; its processes need not end at the same moment.
        usual = (None, 0, *(128 + number for number in (signal.SIGINT, signal.SIGTERM)))
        codes = {number: process.poll() for number, process in enumerate(launched, start=1)}
        ended = sorted((code, number) for number, code in codes.items() if code not in usual)
        if not ended:
            return None
        code, number = ended[0]  # one that was killed, if there is one
        if code == 2:
            return ""
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"process {number} of {self.trainer.world_size} {how}"

    def end_run(self, error: Exception) -> None:
        """Ends this process because of an error that another one has caused.

        Raises:
            ValueError: if this process is the one that says so.
            SystemExit: otherwise.
        """
        _within(SOON, lambda: self.gone() is not None)
        what = self.gone()
        if what == "" or not self.speaks():
            sys.exit(2)
        raise ValueError(self.sentence(what or "another process of the run ended")) from error

    def speaks(self) -> bool:
        """Whether it is this process that says why the run ends."""
        return not run_of_first() or (_is_orphan() and os.environ.get("LOCAL_RANK") == "1")

    def sentence(self, what: str) -> str:
        """Returns what happened, with the way to go on."""
        how = "there is no checkpoint yet, so begin again"
        if self.checkpoint.is_file():
            how = f"go on from its last checkpoint with -t --resume {shlex.quote(str(self.resumed))}"
        return f"step {self.trainer.global_step}: {what}; {how}"

    def _relieve(self) -> None:
        """Takes the place of Lightning's own thread, which kills all processes without a word."""
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                thread._child_processes = []  # type: ignore[attr-defined]


def _is_orphan() -> bool:
    """Whether the process that started this one has ended."""
    return os.getppid() != PARENT


def _within(seconds: float, condition: Any) -> bool:
    """Returns whether a condition holds before so many seconds have passed."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _is_of_connection(error: Exception) -> bool:
    """Whether an error says that another process does not answer."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in CONNECTION)
