"""Image grids that also show the neighbours of each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ldm.callbacks import ImageLogger
from rdm.retrieval.database.pictures import pictures


class RetrievalImageLogger(ImageLogger):
    """Writes grids with a row for each image: input, neighbours, reconstruction and sample."""

    def more_columns(self, trainer: pl.Trainer, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the neighbours' pictures ``[N, K, 3, H, W]``, cropped from the database's source."""
        rows = batch["neighbour_rows"]
        data: Any = getattr(trainer, "datamodule", None)  # Lightning does not declare it
        size = batch["image"].shape[-1]
        return {"neighbours": pictures(data.database, rows.numpy(), size)}

    def order(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the columns in the order inputs, neighbours, reconstructions, samples."""
        return {name: columns[name] for name in ("inputs", "neighbours", "reconstructions", "samples")}
