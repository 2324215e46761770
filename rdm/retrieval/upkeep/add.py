"""Adds single pictures to a database, each as one row, with the licence and the attribution that are given for it.

The pictures are kept in the folder of the database: each call writes ``added/<number>.parquet`` and appends this file
as a source of its own. A call that is killed leaves the database as it was or with all pictures of the call; a file
that no source names is deleted by the next call.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ldm.data.decode import Size, short_size
from ldm.files import atomic_path
from ldm.locks import locked
from rdm.retrieval.builder.plan import Plan
from rdm.retrieval.builder.work import Work
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.patches.identity import picture_hash
from rdm.retrieval.patches.policy import Patches, cut
from rdm.retrieval.upkeep.append import APPEND_LOCK, APPEND_PLAN, append_locked, next_number

FOLDER = "added"


@dataclass(frozen=True, eq=False)
class NewPicture:
    """A picture that becomes a row.

    Attributes:
        image: 8-bit RGB, see :func:`ldm.data.decode.open_picture`. Only its pixels are kept.
        licence: such as ``CC-BY-4.0``.
        attribution: who made it, as the licence asks for it.
        caption: what it shows; may be empty.
    """

    image: Image.Image
    licence: str
    attribution: str
    caption: str = ""


def add_pictures(
    path: str | Path, pictures: Sequence[NewPicture], embedder: Embedder, size: Size | None = None
) -> tuple[RetrievalDatabase, np.ndarray]:
    """Embeds pictures as a whole and adds them to a database, all or none.

    Args:
        path: folder of the database.
        pictures: the pictures.
        embedder: the embedder that made the database.
        size: the size to which pictures are cropped and scaled before they are embedded, for a database that records no
            source; others say it themselves.

    Returns:
        The database with the new rows, whose index and neighbour tables must be built again, and the numbers of these
        rows, ``[n] int64``, in the order of the pictures.

    Raises:
        FileNotFoundError: there is no finished database.
        ValueError: there is no picture, one lacks a licence or an attribution or is in the database already, the size
            is unknown, another embedder made the database, or another process appends to it.
        OSError: the disk is full; the database is unchanged.
    """
    path = Path(path)
    if not pictures:
        raise ValueError("got no picture to add, expected at least one; give a picture")
    for number, picture in enumerate(pictures):
        lacks = [name for name in ("licence", "attribution") if not getattr(picture, name).strip()]
        if lacks:
            raise ValueError(f"picture {number + 1}: got no {' and no '.join(lacks)}; state them as its author does")
    RetrievalDatabase.open(path, embedder)
    with locked(path / APPEND_LOCK, f"appending to {path}", wait=False):
        database = RetrievalDatabase.open(path, embedder)
        size = size_of(database) or size
        if size is None:
            raise ValueError(f"database {path} records no source, so the size of its pictures is unknown; give size")
        delete_unnamed(database)
        _check_new(database, pictures, size)
        numbers = [int(file.stem) for file in (path / FOLDER).glob("*.parquet")]
        file = path / FOLDER / f"{max([next_number(database), *(number + 1 for number in numbers)]):05d}.parquet"
        source = {"target": "ldm.data.ParquetImages", "params": {"files": str(file), "size": short_size(size)}}
        try:
            _write(file, pictures)
            grown = append_locked(path, source, embedder, Patches(), Work(workers=0, max_broken=0, progress=False))
        finally:
            delete_unnamed(RetrievalDatabase.open(path))
    return grown, np.arange(len(grown) - len(pictures), len(grown))


def added_last(database: RetrievalDatabase, pictures: Sequence[NewPicture]) -> np.ndarray | None:
    """Returns the last rows of a database, ``[n] int64``, if they are these pictures with the same words; else None."""
    size, rows = size_of(database), np.arange(max(len(database) - len(pictures), 0), len(database))
    if size is None or not added_file(database.sources[-1]["source"]) or not database.is_alive(rows).all():
        return None
    wanted = [
        (picture_hash(cut(each.image, None, size)), each.licence, each.attribution, each.caption) for each in pictures
    ]
    columns = [database.values(name, rows).tolist() for name in ("sha256", "licence", "attribution", "caption")]
    return rows if list(zip(*columns, strict=True)) == wanted else None


def size_of(database: RetrievalDatabase) -> Size | None:
    """Returns the size at which the pictures of a database were embedded; None if its sources do not say it."""
    stated = (each["source"].get("params", {}).get("size") for each in database.sources if each["source"])
    return next((size for size in stated if size is not None), None)


def _check_new(database: RetrievalDatabase, pictures: Sequence[NewPicture], size: Size) -> None:
    """Checks that no picture has the pixels of a living row or of another picture.

    Raises:
        ValueError: one has.
    """
    hashes = [picture_hash(cut(picture.image, None, size)) for picture in pictures]
    rows = find_rows(database, where={"sha256": hashes})
    rows = rows[database.is_alive(rows)]
    known = dict(zip(database.values("sha256", rows).tolist(), (f"row {row}" for row in rows.tolist()), strict=True))
    for number, found in enumerate(hashes):
        if found in known:
            raise ValueError(f"picture {number + 1} has the pixels of {known[found]}, expected a new one; leave it out")
        known[found] = f"picture {number + 1}"


def _write(file: Path, pictures: Sequence[NewPicture]) -> None:
    """Writes pictures as PNG with what is known of them, whole or not at all."""
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(picture.image.convert("RGB"))).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    columns = {
        "image": pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "name": [picture.caption for picture in pictures],
        "license": [picture.licence for picture in pictures],
        "attribution": [picture.attribution for picture in pictures],
    }
    with atomic_path(file) as temporary:
        pq.write_table(pa.table(columns), temporary)


def delete_unnamed(database: RetrievalDatabase) -> None:
    """Deletes what calls that did not get through have left: files that no source names, and their plan."""
    path, plan = database.path, database.path / APPEND_PLAN
    named = {Path(name).name for name in map(added_file, (each["source"] for each in database.sources)) if name}
    unused = [file for file in (path / FOLDER).glob("*.parquet") if file.name not in named]
    if plan.is_file() and added_file(Plan.from_file(plan).source):
        plan.unlink()
    for file in (*unused, *(path / FOLDER).glob(".*.tmp")):
        file.unlink()


def added_file(source: Mapping[str, Any]) -> str:
    """Returns the file that a source names if it is one of added pictures; "" for all others."""
    files = source.get("params", {}).get("files")
    return files if isinstance(files, str) and Path(files).parent.name == FOLDER else ""
