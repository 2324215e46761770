"""The folder of a page's uploads. It is removed when the page ends; if it was killed, when the next page starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ldm.locks import LOCK, locked

PREFIX = "rdm-web-"
YOUNG = 60  # seconds; a folder that is so young may not be locked yet


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """Yields a new folder, which is removed at the end. It is locked meanwhile, so that no other page removes it."""
    remove_left_over()
    outer = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    with locked(outer / LOCK, "serving a page"):
        folder = outer / "uploads"  # without the lock, which is nobody's business
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(outer, ignore_errors=True)


def remove_left_over() -> None:
    """Removes the folders of this user's pages that were killed: those whose lock nobody holds."""
    for outer in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # it is gone, or its page runs
            about = outer.stat(follow_symlinks=False)
            is_own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if is_own and about.st_mtime < time.time() - YOUNG and (outer / LOCK).is_file():
                with locked(outer / LOCK, "serving a page", wait=False):
                    shutil.rmtree(outer)
