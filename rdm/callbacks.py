"""The image logger of retrieval-augmented models, whose grids also show the neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ldm.callbacks import ImageLogger
from rdm.retrieval.database.pictures import framed_pictures


class RetrievalImageLogger(ImageLogger):
    """Logs grids of the input, its neighbours, the reconstruction and the sample, side by side."""

    def more_columns(self, trainer: pl.Trainer, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the pictures of the neighbours, ``[N, K, 3, H, W]``, read from the source of the database."""
        rows, size = batch["neighbour_rows"], batch["image"].shape[2:]
        data: Any = getattr(trainer, "datamodule", None)  # Lightning does not declare this attribute
        return {"neighbours": framed_pictures(data.database, rows.numpy(), *size)}

    def order(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the columns in the order of the grid; the neighbours follow the input."""
        return {name: columns[name] for name in ("inputs", "neighbours", "reconstructions", "samples")}
