"""Locks between processes, which the system releases when a process ends, in whatever way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOG = logging.getLogger(__name__)
LOCK = ".lock"


@contextlib.contextmanager
def locked(file: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Holds a lock between processes, and waits while another one holds it.

    The system releases the lock when its process ends, in whatever way. The file is there as long as the lock is held,
    and says by whom. On a file system without locks a warning is logged, and nothing is held.

    Args:
        file: the file of the lock.
        what: what the process that holds it is doing, for the message of one that waits.
        wait: whether to wait.

    Raises:
        ValueError: another process holds the lock, and this one is not to wait; the message says which.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    owner, number = os.getpid(), _take(file, what, wait)
    _HELD.add(number)
    try:
        os.truncate(number, 0)
        os.write(number, f"process {owner} on {socket.gethostname()} ({Path(sys.argv[0]).name})".encode())
        yield
    finally:
        if os.getpid() == owner:
            file.unlink(missing_ok=True)
            _HELD.discard(number)
            os.close(number)


_HELD: set[int] = set()  # open files of locks


def _close_in_child() -> None:
    """Closes the locks of the parent, which could otherwise outlive it in its children."""
    for number in _HELD:
        os.close(number)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _take(file: Path, what: str, wait: bool) -> int:
    """Returns the open file of a lock that is now held."""
    while True:
        number = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(number, file, what, wait)
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_ino == os.fstat(number).st_ino:  # else its former owner has removed it
                    return number
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                LOG.warning("%s: %s; let no other process work on it", file, os.strerror(error.errno))
                return number
            os.close(number)
            raise
        except BaseException:  # told to stop while it waited
            os.close(number)
            raise
        os.close(number)


def _lock(number: int, file: Path, what: str, wait: bool) -> None:
    """Takes the lock of an open file; says whom it waits for."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = (file.read_text(encoding="utf-8") if file.is_file() else "") or "another process"
        if not wait:
            raise ValueError(f"{owner} is {what}; wait for it, or name another folder") from None
        start = time.monotonic()
        LOG.info("%s is %s; waiting for it", owner, what)
        fcntl.flock(number, fcntl.LOCK_EX)
        LOG.info("waited %.0f seconds for %s", time.monotonic() - start, owner)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Lets one process at a time build what belongs into a folder; the others wait.

    Whoever has waited looks again whether there is still something to build.
    """
    try:
        with locked(folder / LOCK, f"building {folder}"):
            yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing was built


def delete_left_lock(folder: Path) -> None:
    """Deletes the lock of :func:`building` in a folder that is built, if its process was killed at the very end."""
    if (folder / LOCK).is_file():
        with contextlib.suppress(ValueError), locked(folder / LOCK, "", wait=False):
            pass  # another process that holds it deletes it
