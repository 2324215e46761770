"""Erases what the folder of a database keeps of rows that ``compact`` has deleted, beside the shards themselves.

What is erased follows from what the folder holds, not from which rows went. So a call that was killed is completed by
the next one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm.files import atomic_path, located, read_json
from ldm.locks import building
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.upkeep.add import FOLDER, added_file, delete_unnamed
from rdm.retrieval.upkeep.duplicates import FILE as DUPLICATES

LOG = logging.getLogger(__name__)
_DERIVED = ("index", "references", "tokens-*")  # folders of what is computed from rows; rdm.data makes the last two
_ARRAYS = (".npy", ".faiss")  # their cards beside these name the rows only by a fingerprint


def erase(database: RetrievalDatabase) -> None:
    """Deletes derived files of other rows than the present ones, the list of duplicates, and added pictures of no row.

    These are the index, the tables of reference latents and of tokens, also half-built ones, and the pictures in
    ``added/``. Neighbour tables and popularity stay: they hold row numbers and counts only.

    Args:
        database: a database whose rows have just been rewritten. The caller keeps others from appending to it.
    """
    for folder in sorted(folder for name in _DERIVED for folder in database.path.glob(name)):
        with building(folder):  # what another process builds there is of earlier rows, so it is waited for, and goes
            _erase_derived(folder, database.fingerprint)
    for file in (database.path / DUPLICATES, *database.path.glob(f".{DUPLICATES}.*.tmp")):
        file.unlink(missing_ok=True)
    delete_unnamed(database)
    for file in sorted((database.path / FOLDER).glob("*.parquet")):
        _erase_pictures(file, _items_in(database, file))


def _erase_derived(folder: Path, fingerprint: str) -> None:
    """Deletes the arrays in a folder of derived files, if they are of other rows than those of a fingerprint."""
    made_for = {read_json(card, f"delete {card}").get("database") for card in folder.glob("*.json")}
    unfinished = list(folder.glob(".*.tmp"))
    old = [] if made_for == {fingerprint} else [file for file in folder.iterdir() if file.suffix in _ARRAYS]
    for file in (*unfinished, *old):
        LOG.info("deleting %s, which is not of the present rows", file)
        file.unlink()


def _items_in(database: RetrievalDatabase, file: Path) -> set[int]:
    """Returns the lines of a file of added pictures that rows of a database were made of."""
    found: set[int] = set()
    ends = np.cumsum([entry["shards"] for entry in database.sources]).tolist()
    for entry, end in zip(database.sources, ends, strict=True):
        name = added_file(entry["source"])
        if Path(name).name != file.name or (located(name).exists() and not located(name).samefile(file)):
            continue  # the second is a file of another database, from which this one was merged
        for number in range(end - entry["shards"], end):
            found |= set(database.cells(number, "item").to_pylist())
    return found


def _erase_pictures(file: Path, kept: set[int]) -> None:
    """Empties the lines of a file of added pictures except some; lines keep their numbers, which rows name."""
    table = pq.read_table(file)
    lost = [line for line in range(len(table)) if line not in kept and table["image"][line].as_py()["bytes"]]
    if not lost:
        return
    LOG.info("erasing %d of the %d pictures in %s, which have no row", len(lost), len(table), file)
    empty: dict[str, Any] = {"image": {"bytes": b"", "path": None}}
    columns = {
        field.name: pa.array(
            [
                empty.get(field.name, "") if line in lost else value
                for line, value in enumerate(table[field.name].to_pylist())
            ],
            field.type,
        )
        for field in table.schema
    }
    with atomic_path(file) as temporary:
        pq.write_table(pa.table(columns), temporary)
