"""What batches hold of neighbours beside their embeddings, from tables that are computed before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.config import check_keys
from ldm.data.datamodule import DataModule
from ldm.models.first_stage import fingerprint, frozen_first_stage
from rdm.data.references import GridTable, ReferenceTable, prepare_grid_table, prepare_reference_table
from rdm.data.row_tables import RowTable
from rdm.retrieval.config import require
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder

CHOICES = {"split", "where", "keep", "max_broken"}  # arguments that choose among pictures and do not change them


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
        self, database: RetrievalDatabase, neighbours: Sequence[np.ndarray], embedder: Embedder, size: tuple[int, int]
    ) -> None:
        """Computes the tables that are missing.

        Args:
            database: the database, whose source must hold the pictures.
            neighbours: integers of any shape, the rows that are neighbours.
            embedder: the embedder that made the database.
            size: height and width of the training images in pixels.

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

    def check_first_stage(self, database: RetrievalDatabase, model: Any) -> None:
        """Checks that a model's own first stage encoded the references.

        The latents of a model that started from the weights of another one may be of another first stage.

        Raises:
            ValueError: they were encoded by another one.
        """
        if self.reference_stage is None:
            return
        theirs, own = self.further(database)["references"].card["first_stage"], fingerprint(model.first_stage_model)
        if theirs != own:
            raise ValueError(
                f"data.params.references.first_stage has the weights {theirs[:12]}, expected those of the model's "
                f"first stage, {own[:12]}; weights of a whole model (ckpt_path) replace its first stage, unless "
                "model.params.load_only_unet=true"
            )

    def own_rows(self, images: Any, config: Mapping[str, Any], database: RetrievalDatabase) -> np.ndarray | None:
        """Returns the database rows that show the images themselves, ``[N] int64``, so that their latents are known.

        Returns None without references, or if the database was not made of the whole pictures of this data set.

        Args:
            images: the data set.
            config: its ``{target, params}``.
            database: the database.
        """
        sources = database.sources
        source, patches = sources[0].get("source"), sources[0].get("patches") or {}
        if self.reference_stage is None or len(sources) != 1 or not source or patches.get("policy") != "whole":
            return None
        theirs, ours = ({**each.get("params", {}), "target": each["target"]} for each in (source, config))
        if any(theirs.get(key) != ours.get(key) for key in {*theirs, *ours} - CHOICES):
            return None
        rows = {name: row for row, name in enumerate(database.column("image_id").to_pylist())}
        found = [rows.get(images.metadata(number)["id"], -1) for number in range(len(images))]
        return None if -1 in found or len(rows) != len(database) else np.array(found, dtype=np.int64)

    def _path(self, kind: type[RowTable], database: RetrievalDatabase) -> Path:
        own = "references" if kind is ReferenceTable else f"tokens-{self.grid}"
        return Path(self._paths[kind] or database.path / own)
