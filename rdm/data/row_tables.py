"""Row tables: a value for each of some rows of a database, computed once before training.

A table is a folder with the memory-mapped ``rows.npy`` ``[N]``, the numbers of the rows in ascending order, the values
``[N, ...] float16``, and a card. It holds the rows that neighbour tables name, so its size follows the training images
and not the database.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.files import check_hash, read_json
from ldm.locks import building, delete_left_lock
from ldm.stopping import going_on
from ldm.table import KEPT, ResumableTable, check_disk
from rdm.retrieval.database.rows import RetrievalDatabase

LOG = logging.getLogger(__name__)
FORMAT = 1
ROWS = "rows"
_BATCH = 64
_REMEDY = "delete it, and train again"


class RowTable:
    """The values of some rows of a database; a subclass says which.

    Args:
        path: the folder.
        card: the content of its card.

    Attributes:
        what: names the values in messages.
        card_file: name of the card's file.
        name: of the values; their file is ``NAME.npy``.
        setting: where a config names the folder.
    """

    what: ClassVar[str]
    card_file: ClassVar[str]
    name: ClassVar[str]
    setting: ClassVar[str]

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path, self.card = path, dict(card)
        self.rows = np.load(path / f"{ROWS}.npy", mmap_mode="r", allow_pickle=False)
        self.values = np.load(path / f"{self.name}.npy", mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, database: RetrievalDatabase) -> RowTable:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is no table.
            ValueError: the table is damaged or belongs to another database.
        """
        path = Path(path)
        card = read_json(path / cls.card_file, f"no {cls.what} at {path}; main.py computes them before it trains")
        if card.get("format") != FORMAT or card.get("database") != database.fingerprint:
            raise ValueError(
                f"{cls.what} {path} belong to the database {card.get('database')}, got {database.fingerprint}; "
                f"{_REMEDY}"
            )
        for file in (f"{ROWS}.npy", f"{cls.name}.npy"):
            check_hash(path / file, card[file], _REMEDY)
        return cls(path, card)

    @classmethod
    def prepare(
        cls,
        path: str | Path,
        database: RetrievalDatabase,
        neighbours: Sequence[np.ndarray],
        made_by: Mapping[str, Any],
        values_of: Callable[[np.ndarray], Tensor],
        *,
        progress: bool = True,
    ) -> RowTable:
        """Returns the table at ``path``; builds or completes it unless it holds these rows and was made in this way.

        If only the rows differ, values that are there are not computed again. Of several processes, one builds and the
        others wait for it.

        Args:
            path: folder of the table; an existing table is replaced when the new one is complete.
            database: the database, whose source must hold the pictures.
            neighbours: integers of any shape, the rows whose values are needed.
            made_by: how the values are made, as JSON; a table that was made in another way is made again.
            values_of: rows ``[n]`` -> their values ``[n, ...]``.
            progress: show a progress bar.

        Raises:
            ValueError: the disk is too small, a value is too large for float16, or the source holds other pictures
                than the database was built from.
            FileNotFoundError: the source of the database has moved.
        """
        path, rows = Path(path), np.unique(np.concatenate([np.unique(each) for each in neighbours])).astype(np.int64)
        plan = {
            "format": FORMAT,
            "database": database.fingerprint,
            "rows": len(rows),
            "rows_hash": hashlib.sha256(rows.tobytes()).hexdigest(),
            **made_by,
        }
        if cls._differences(path, plan):
            with building(path), going_on(KEPT):
                if differs := cls._differences(path, plan):
                    earlier = None
                    if (path / cls.card_file).is_file():
                        LOG.warning("%s %s differ in %s; computing them again", cls.what, path, ", ".join(differs))
                        if set(differs) <= {"rows", "rows_hash"}:  # their values are still those of their rows
                            earlier = cls.open(path, database)
                    cls._fill(path, rows, plan, values_of, earlier, progress)
        else:
            delete_left_lock(path)
        return cls.open(path, database)

    @classmethod
    def _differences(cls, path: Path, plan: Mapping[str, Any]) -> list[str]:
        """Returns in what the table at ``path`` is not the wanted one; an empty list if it is."""
        card = read_json(path / cls.card_file, _REMEDY) if (path / cls.card_file).is_file() else {}
        return [key for key in plan if card.get(key) != plan[key]]

    @classmethod
    def _fill(
        cls,
        path: Path,
        rows: np.ndarray,
        plan: Mapping[str, Any],
        values_of: Callable[[np.ndarray], Tensor],
        earlier: RowTable | None,
        progress: bool,
    ) -> None:
        """Computes the values of all rows, or what is left of them, and writes the table."""
        table = ResumableTable(path, len(rows), plan)
        left = rows[table.done :]
        if len(left):
            check_disk(path, len(left), cls._half(left[:1], values_of)[0].nbytes + 8, cls.what, cls.setting)
        with tqdm(total=len(rows), initial=table.done, unit="row", desc=cls.what, disable=not progress) as bar:
            for start in range(table.done, len(rows), _BATCH):
                some = rows[start : start + _BATCH]
                table.append(**{ROWS: some, cls.name: cls._completed(some, values_of, earlier)})
                bar.update(len(some))
        table.finish(cls.card_file, {**plan, **{f"{name}.npy": value for name, value in table.hashes().items()}})
        LOG.info("wrote %s %s: %d rows", cls.what, path, len(rows))

    @classmethod
    def _completed(
        cls, rows: np.ndarray, values_of: Callable[[np.ndarray], Tensor], earlier: RowTable | None
    ) -> np.ndarray:
        """Returns the values of rows, ``[n, ...] float16``, those of an earlier table as they are there."""
        if earlier is None:
            return cls._half(rows, values_of)
        known = np.isin(rows, earlier.rows)
        values = np.empty((len(rows), *earlier.values.shape[1:]), dtype=np.float16)
        values[known] = earlier.of_rows(rows[known]).numpy()
        if not known.all():
            values[~known] = cls._half(rows[~known], values_of)
        return values

    @classmethod
    @torch.no_grad()
    def _half(cls, rows: np.ndarray, values_of: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """Returns the values of rows, ``[n, ...] float16``, after a check that they are finite."""
        values = values_of(rows).cpu().to(torch.float16)
        finite = values.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            raise ValueError(
                f"the {cls.what} of row {rows[finite.index(False)]} are not finite in float16, which ends at 65504; "
                "check the weights that make them"
            )
        return values.numpy()

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path and the card only; a worker process opens the files again."""
        return type(self), (self.path, self.card)

    def of_rows(self, rows: np.ndarray) -> Tensor:
        """Returns the values of database rows of any shape, ``[*rows.shape, ...] float16``.

        Raises:
            ValueError: the table does not hold a row.
        """
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        missing = np.asarray(rows)[self.rows[places] != rows]
        if missing.size:
            raise ValueError(f"{self.what} {self.path} have no row {missing.flat[0]}; {_REMEDY}")
        return torch.from_numpy(self.values[places])
