"""What batches hold of neighbours beside their embeddings, from tables that are computed before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.config import check_keys
from ldm.data.datamodule import DataModule
from ldm.models.first_stage import frozen_first_stage
from rdm.data.references import GridTable, ReferenceTable, prepare_grid_table, prepare_reference_table
from rdm.data.row_tables import RowTable
from rdm.retrieval.config import require
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder


class FurtherDataModule(DataModule):
    """Images whose batches may hold the latents of their neighbours and grids of their neighbours' tokens.

    The pictures of the database are read for them once, before training.

    Args:
        references: ``first_stage`` (``{target, params}`` with ``ckpt_path``), which adds the latents of the neighbours
            to every batch, and optionally ``path``, the folder of the table that keeps them (by default in the
            database's).
        tokens: ``grid``, the side of the grids of tokens that the embedder makes of the neighbours, which adds them to
            every batch, and optionally ``path``, the folder of their table.
        options: arguments of :class:`DataModule`.

    Raises:
        ValueError: a key of one of the sections is unknown or missing.
    """

    def __init__(
        self, references: Mapping[str, Any] | None = None, tokens: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.reference_stage: Any = None
        self.grid: int | None = None
        self._paths: dict[type[RowTable], str | None] = {}
        if references:
            check_keys(dict(references), ("first_stage", "path"), "references")
            (self.reference_stage,) = require(references, ("first_stage",), "references")
            self._paths[ReferenceTable] = references.get("path")
        if tokens:
            check_keys(dict(tokens), ("grid", "path"), "tokens")
            (self.grid,) = require(tokens, ("grid",), "tokens")
            self._paths[GridTable] = tokens.get("path")

    def prepare_further(
        self, database: RetrievalDatabase, neighbours: Sequence[np.ndarray], embedder: Embedder, size: int
    ) -> None:
        """Computes the tables that are missing.

        Args:
            database: the database, whose source must hold the pictures.
            neighbours: integers of any shape, the rows that are neighbours.
            embedder: the embedder that made the database.
            size: side of the training images in pixels.

        Raises:
            ValueError: see :meth:`RowTable.prepare`.
            FileNotFoundError: the source of the database has moved.
        """
        if self.grid is not None:
            prepare_grid_table(self._path(GridTable, database), database, neighbours, embedder, self.grid)
        if self.reference_stage is not None:
            stage = frozen_first_stage(self.reference_stage).to("cuda" if torch.cuda.is_available() else "cpu")
            prepare_reference_table(self._path(ReferenceTable, database), database, neighbours, stage, size)

    def further(self, database: RetrievalDatabase) -> dict[str, RowTable]:
        """Returns the tables by the name that their values have in a batch."""
        names: dict[type[RowTable], str] = {ReferenceTable: "references", GridTable: "neighbour_tokens"}
        return {names[kind]: kind.open(self._path(kind, database), database) for kind in self._paths}

    def _path(self, kind: type[RowTable], database: RetrievalDatabase) -> Path:
        own = "references" if kind is ReferenceTable else f"tokens-{self.grid}"
        return Path(self._paths[kind] or database.path / own)
