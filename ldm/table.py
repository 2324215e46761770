"""Tables on disk that are filled a batch at a time; a process that was killed continues where it stopped.

One process at a time fills a table: it holds :func:`ldm.locks.building`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import atomic_path, file_hash, named_in_errors, read_json, write_json

LOG = logging.getLogger(__name__)
KEPT = "what is filled of the table is kept, and the same command continues"  # if it is told to stop
PLAN, PARTIAL = "build.json", ".partial.npy"


class ResumableTable:
    """Arrays with one line per item, which are filled in the order of the items.

    Until the table is finished, its folder holds ``NAME.partial.npy`` for each array and ``build.json``, which is the
    plan and how many lines are ``done``. That file changes after the lines are on disk, so the lines it counts are
    whole. A finished table holds ``NAME.npy`` for each array and a card.

    Args:
        path: the folder.
        length: number of lines.
        plan: what the table is made from and how, as JSON. Where another plan was begun, the table is begun anew.

    Attributes:
        done: number of lines that are filled.

    Raises:
        ValueError: there are no lines to fill.
    """

    def __init__(self, path: Path, length: int, plan: Mapping[str, Any]) -> None:
        if length < 1:
            raise ValueError(f"table {path}: got {length} items, expected at least one")
        self.path, self.length = path, length
        self.plan: dict[str, Any] = json.loads(json.dumps(plan))
        self.done = self._lines_done()
        partial = sorted(path.glob(f"*{PARTIAL}"))
        if self.done and partial:
            LOG.info("continuing table %s after %d of %d items", path, self.done, length)
            self._names = [file.name.removesuffix(PARTIAL) for file in partial]
            return
        self.done, self._names = 0, []
        (path / PLAN).unlink(missing_ok=True)  # it counts lines of files that go now
        for file in partial:
            file.unlink()
        path.mkdir(parents=True, exist_ok=True)

    def _lines_done(self) -> int:
        """Returns how many lines an earlier process has filled by the same plan."""
        if not (self.path / PLAN).is_file():
            return 0
        content = read_json(self.path / PLAN, f"delete {self.path}")
        done = content.pop("done", 0)
        return done if content == self.plan else 0

    def append(self, **lines: np.ndarray) -> None:
        """Fills the next lines of every array; the first call decides which arrays there are, their shape and type.

        Args:
            lines: name -> ``[B, ...]``, as many lines of each array.

        Raises:
            OSError: a file cannot be written, for example on a full disk; the lines before these are kept.
        """
        stop = self.done + len(next(iter(lines.values())))
        for name, rows in lines.items():
            if name not in self._names:
                self._names.append(name)
            self._write(self.path / f"{name}{PARTIAL}", np.ascontiguousarray(rows))
        write_json(self.path / PLAN, {**self.plan, "done": stop})
        self.done = stop

    def _write(self, file: Path, rows: np.ndarray) -> None:
        """Writes the next lines behind those of an array's file, which begins with the header of the whole array.

        The array is not mapped into memory here: on a full disk, the system kills who writes to such an array.
        """
        with named_in_errors(file), file.open("r+b" if self.done else "wb") as stream:
            if self.done:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                if (shape[1:], dtype) != (rows.shape[1:], rows.dtype):
                    raise ValueError(
                        f"{file} has lines {shape[1:]} of {dtype}, got {rows.shape[1:]} of {rows.dtype}; delete "
                        f"{self.path} and begin again"
                    )
                stream.seek(self.done * rows[:1].nbytes, os.SEEK_CUR)
            else:
                whole = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(stream, {**whole, "shape": (self.length, *rows.shape[1:])})
            stream.write(rows.data)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())

    def hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of the file of each array."""
        return {name: file_hash(self.path / f"{name}{PARTIAL}") for name in sorted(self._names)}

    def finish(self, card: str, content: Mapping[str, Any]) -> None:
        """Gives the filled arrays their names, in place of those of an earlier table, and writes the card last.

        Args:
            card: name of the card's file.
            content: of the card.
        """
        if self.done != self.length:
            raise ValueError(f"table {self.path} has {self.done} of {self.length} lines, expected all; fill them first")
        with atomic_path(self.path / card) as temporary:
            write_json(temporary, content)
            for file in (card, PLAN):  # from here on, neither the earlier table nor this one is whole
                (self.path / file).unlink(missing_ok=True)
            for name in self._names:
                (self.path / f"{name}{PARTIAL}").replace(self.path / f"{name}.npy")
        self._names.clear()


def check_disk(path: Path, lines: int, each: int, what: str, setting: str) -> None:
    """Says how much disk space a table needs.

    Args:
        path: its folder.
        lines: number of lines that are left to fill.
        each: bytes of a line.
        what: names the values in messages.
        setting: where a config names the folder.

    Raises:
        ValueError: there is less.
    """
    needed, free = lines * each, shutil.disk_usage(path).free
    LOG.info("%s of %d lines need %.1f of %.1f MB free on the disk", what, lines, needed / 1e6, free / 1e6)
    if needed > free:
        raise ValueError(
            f"{what} need {needed / 1e6:.1f} MB of disk space at {path}, got {free / 1e6:.1f} MB free; name another "
            f"path in {setting}"
        )
