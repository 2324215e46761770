"""Reference tables: the first-stage latents of the database rows that are neighbours, computed before training.

A table is a folder with the memory-mapped ``rows.npy`` ``[N]``, the numbers of the rows in ascending order,
``latents.npy`` ``[N, C, h, w] float16`` without a scale factor, and its card ``references.json``. It holds the rows
that neighbour tables name, so its size follows the training images and not the database.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.files import check_hash, read_json
from ldm.models.first_stage import encode, fingerprint
from ldm.table import ResumableTable
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.database.rows import RetrievalDatabase

LOG = logging.getLogger(__name__)
FORMAT = 1
CARD, ROWS, LATENTS = "references.json", "rows.npy", "latents.npy"
_BATCH = 64
_REMEDY = "delete it, and train again"


class ReferenceTable:
    """The latents of some rows of a database.

    Args:
        path: the folder.
        card: the content of its ``references.json``.
    """

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path, self.card = path, dict(card)
        self.rows = np.load(path / ROWS, mmap_mode="r", allow_pickle=False)
        self.latents = np.load(path / LATENTS, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, database: RetrievalDatabase) -> ReferenceTable:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is no table.
            ValueError: the table is damaged or belongs to another database.
        """
        path = Path(path)
        card = read_json(path / CARD, f"no reference latents at {path}; main.py computes them before it trains")
        if card.get("format") != FORMAT or card.get("database") != database.fingerprint:
            raise ValueError(
                f"reference latents {path} belong to the database {card.get('database')}, got {database.fingerprint}; "
                f"{_REMEDY}"
            )
        for file in (ROWS, LATENTS):
            check_hash(path / file, card[file], _REMEDY)
        return cls(path, card)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path and the card only; a worker process opens the files again."""
        return type(self), (self.path, self.card)

    def of_rows(self, rows: np.ndarray) -> Tensor:
        """Returns the latents of database rows of any shape, ``[*rows.shape, C, h, w] float16``.

        Raises:
            ValueError: the table does not hold a row.
        """
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        missing = np.asarray(rows)[self.rows[places] != rows]
        if missing.size:
            raise ValueError(f"reference latents {self.path} have no row {missing.flat[0]}; {_REMEDY}")
        return torch.from_numpy(self.latents[places])


def prepare_reference_table(
    path: str | Path,
    database: RetrievalDatabase,
    neighbours: Sequence[np.ndarray],
    stage: Any,
    size: int,
    *,
    progress: bool = True,
) -> ReferenceTable:
    """Returns the table at ``path``; builds or completes it unless it belongs to these rows and this first stage.

    Args:
        path: folder of the table; an existing table is replaced when the new one is complete.
        database: the database, whose source must hold the pictures.
        neighbours: integers of any shape, the rows whose latents are needed.
        stage: a first stage in evaluation mode.
        size: side in pixels that pictures are scaled to before they are encoded.
        progress: show a progress bar.

    Raises:
        ValueError: the disk is too small, or the source holds other pictures than the database was built from.
        FileNotFoundError: the source of the database has moved.
    """
    path, rows = Path(path), np.unique(np.concatenate([np.unique(each) for each in neighbours])).astype(np.int64)
    plan = {
        "format": FORMAT,
        "database": database.fingerprint,
        "rows": len(rows),
        "rows_hash": hashlib.sha256(rows.tobytes()).hexdigest(),
        "size": size,
        "first_stage": fingerprint(stage),
    }
    if (path / CARD).is_file():
        card = read_json(path / CARD, _REMEDY)
        differs = [key for key in plan if card.get(key) != plan[key]]
        if not differs:
            return ReferenceTable.open(path, database)
        LOG.warning("reference latents %s differ in %s; computing them again", path, ", ".join(differs))
    table = ResumableTable(path, len(rows), plan)
    left = rows[table.done :]
    if len(left):
        _check_disk(path, len(left), _encoded(database, left[:1], stage, size)[0].nbytes)
    with tqdm(total=len(rows), initial=table.done, unit="row", desc="reference latents", disable=not progress) as bar:
        for start in range(table.done, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            table.append(rows=some, latents=_encoded(database, some, stage, size))
            bar.update(len(some))
    hashes = table.hashes()
    table.finish(CARD, {**plan, ROWS: hashes["rows"], LATENTS: hashes["latents"]})
    LOG.info("wrote reference latents %s: %d rows", path, len(rows))
    return ReferenceTable.open(path, database)


def _check_disk(path: Path, rows: int, each: int) -> None:
    """Says how much disk space the latents need, and raises ValueError if there is less."""
    needed, free = rows * (each + 8), shutil.disk_usage(path).free
    LOG.info("reference latents of %d rows need %.1f of %.1f MB free on the disk", rows, needed / 1e6, free / 1e6)
    if needed > free:
        raise ValueError(
            f"reference latents need {needed / 1e6:.1f} MB of disk space at {path}, got {free / 1e6:.1f} MB free; "
            "name another path in data.params.references"
        )


@torch.no_grad()
def _encoded(database: RetrievalDatabase, rows: np.ndarray, stage: Any, size: int) -> np.ndarray:
    """Returns the latents of rows, ``[n, C, h, w] float16``."""
    device = next(stage.parameters()).device
    return encode(stage, pictures(database, rows, size).to(device)).cpu().numpy().astype(np.float16)
