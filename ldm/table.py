"""Tables on disk that are filled a batch at a time; a process that was killed continues where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import file_hash, read_json, write_json

LOG = logging.getLogger(__name__)
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
        self._arrays: dict[str, np.memmap] = {}
        partial = sorted(path.glob(f"*{PARTIAL}"))
        if self.done and partial:
            LOG.info("continuing table %s after %d of %d items", path, self.done, length)
            for file in partial:
                self._arrays[file.name.removesuffix(PARTIAL)] = np.lib.format.open_memmap(file, mode="r+")
            return
        self.done = 0
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
        """
        stop = self.done + len(next(iter(lines.values())))
        for name, rows in lines.items():
            if name not in self._arrays:
                file, shape = self.path / f"{name}{PARTIAL}", (self.length, *rows.shape[1:])
                self._arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=rows.dtype, shape=shape)
            self._arrays[name][self.done : stop] = rows
            self._arrays[name].flush()
        write_json(self.path / PLAN, {**self.plan, "done": stop})
        self.done = stop

    def hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of the file of each array."""
        return {name: file_hash(self.path / f"{name}{PARTIAL}") for name in self._arrays}

    def finish(self, card: str, content: Mapping[str, Any]) -> None:
        """Gives the filled arrays their names, in place of those of an earlier table, and writes the card last.

        Args:
            card: name of the card's file.
            content: of the card.
        """
        if self.done != self.length:
            raise ValueError(f"table {self.path} has {self.done} of {self.length} lines, expected all; fill them first")
        for file in (card, PLAN):
            (self.path / file).unlink(missing_ok=True)  # from here on neither the earlier table nor this one is whole
        for name in self._arrays:
            (self.path / f"{name}{PARTIAL}").replace(self.path / f"{name}.npy")
        self._arrays.clear()
        write_json(self.path / card, content)
