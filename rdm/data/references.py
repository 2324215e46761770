"""Tables of reference latents and of grids of tokens: what a model sees of its neighbours beside their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.decode import Size, short_size
from ldm.models.first_stage import encode, fingerprint
from ldm.pictures import with_channels
from rdm.data.row_tables import RowTable
from rdm.retrieval.database.pictures import grid_tokens, pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder, check_embedder


class ReferenceTable(RowTable):
    """The first-stage latents of rows, ``[N, C, h, w] float16`` without a scale factor."""

    what, card_file, name, setting = "reference latents", "references.json", "latents", "data.params.references"


class GridTable(RowTable):
    """The tokens of rows, ``[N, g * g, D'] float16``, raw as the embedder gives them."""

    what, card_file, name, setting = "grids of tokens", "tokens.json", "tokens", "data.params.tokens"


def prepare_reference_table(
    path: str | Path,
    database: RetrievalDatabase,
    neighbours: Sequence[np.ndarray],
    stage: Any,
    size: Size,
    *,
    progress: bool = True,
) -> RowTable:
    """Returns the table of reference latents at ``path``, see :meth:`RowTable.prepare`.

    Args:
        path: folder of the table.
        database: the database, whose source must hold the pictures.
        neighbours: integers of any shape, the rows whose latents are needed.
        stage: a first stage in evaluation mode.
        size: size in pixels that pictures are scaled to before they are encoded.
        progress: show a progress bar.
    """
    device, channels = next(stage.parameters()).device, getattr(stage, "in_channels", 3)
    made_by = {"size": short_size(size), "first_stage": fingerprint(stage)}
    return ReferenceTable.prepare(
        path,
        database,
        neighbours,
        made_by,
        lambda rows: encode(stage, with_channels(pictures(database, rows, size), channels).to(device)),
        progress=progress,
    )


def prepare_grid_table(
    path: str | Path,
    database: RetrievalDatabase,
    neighbours: Sequence[np.ndarray],
    embedder: Embedder,
    grid: int,
    *,
    progress: bool = True,
) -> RowTable:
    """Returns the table of grids of tokens at ``path``, see :meth:`RowTable.prepare`.

    Args:
        path: folder of the table.
        database: the database, whose source must hold the pictures.
        neighbours: integers of any shape, the rows whose tokens are needed.
        embedder: the embedder that made the database.
        grid: side g of the grid.
        progress: show a progress bar.

    Raises:
        ValueError: another embedder made the database, or this one has no tokens for the grid.
    """
    check_embedder(database.card["embedder"], embedder, f"database {database.path}", "use the embedder that made it")
    made_by = {"grid": grid, "embedder": embedder.fingerprint}
    return GridTable.prepare(
        path, database, neighbours, made_by, lambda rows: grid_tokens(database, rows, embedder, grid), progress=progress
    )
