"""Python loads this in the processes of a trial: it counts changes of files, and ends the process before one of them.

============== ========================================================================================================
``CHAOS_BELOW``  only changes below this folder count
``CHAOS_REPORT`` file of the report: how many changes, when the first one came, in seconds since the process began
``CHAOS_AT``     number of the change, from 1 on, before which the process gets the signal; without it, none
``CHAOS_SIGNAL`` number of the signal
============== ========================================================================================================

Changes are files that Python opens to write, and files or folders that it renames, links, deletes or makes. Where the
system is Linux, the process ends with the one that started it, so that a benchmark that is killed leaves none behind.
"""

import atexit
import ctypes
import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

BELOW = os.environ.get("CHAOS_BELOW", "")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")
PR_SET_PDEATHSIG = 1  # see prctl(2)


class Watch:
    """Counts the changes of this process; its forked children count none."""

    def __init__(self) -> None:
        self.begin, self.count, self.first = time.monotonic(), 0, -1.0
        self.owner, self.at = os.getpid(), int(os.environ.get("CHAOS_AT", "0"))
        self.number = int(os.environ.get("CHAOS_SIGNAL", "9"))

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Counts an event of Python if it is a change below the folder."""
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in CHANGES
        if not writes or os.getpid() != self.owner or not any(below(each) for each in arguments[:2]):
            return
        self.count += 1
        if self.count == 1:
            self.first = time.monotonic() - self.begin
        if self.count == self.at:
            os.kill(self.owner, self.number)

    def report(self) -> None:
        """Writes the report, unless this process has made no change and another one, its child, has written one."""
        file = pathlib.Path(os.environ["CHAOS_REPORT"])
        if os.getpid() == self.owner and (self.count or not file.exists()):
            file.write_text(json.dumps({"changes": self.count, "first": self.first}))


def below(path: object) -> bool:
    """Whether an argument of an event is a path below the folder."""
    return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(BELOW)  # noqa: PTH100


if BELOW:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    WATCH = Watch()
    atexit.register(WATCH.report)
    sys.addaudithook(WATCH.see)
