"""Tables of latents: those of every training picture, computed once, so that no step encodes a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.config import check_keys
from ldm.data.hub import check_random_access
from ldm.data.picture_table import PicturesWithValues, PictureTable
from ldm.models.first_stage import LATENT, encode, fingerprint, frozen_first_stage


class LatentTable(PictureTable):
    """The latents of pictures, ``[N, C, h, w] float16`` without a scale factor."""

    name, setting = "latents", "data.params.latents.path"


class LatentSource:
    """The latents of a training set, as a section ``latents`` of a data config says.

    Args:
        section: ``path``, the folder of the table, and ``first_stage`` (``{target, params}`` with ``ckpt_path``).

    Raises:
        ValueError: a key is unknown or missing.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        check_keys(dict(section), ("path", "first_stage"), "latents")
        if missing := [key for key in ("path", "first_stage") if key not in section]:
            raise ValueError(f"latents: got no '{missing[0]}', expected path and first_stage")
        self.path, self.first_stage = Path(section["path"]), section["first_stage"]
        self._table: LatentTable | None = None

    def prepare(self, images: Any, *, progress: bool = True) -> LatentTable:
        """Returns the table of the latents of a data set, which is built if it is missing or of others.

        Raises:
            ValueError: the data set is a stream, its pictures differ in size, a latent is not finite, or the disk is
                too small.
        """
        check_random_access(images, "data.params.latents")
        stage = frozen_first_stage(self.first_stage).to("cuda" if torch.cuda.is_available() else "cpu")
        made_by = {"first_stage": fingerprint(stage)}
        table: LatentTable = LatentTable.prepare(
            self.path, images, made_by, lambda each: _latents(stage, each), progress=progress
        )
        self._table = table
        return table

    @property
    def table(self) -> LatentTable:
        """The table, whose checksum is compared when it is first used in a process.

        Raises:
            FileNotFoundError: there is none yet.
            ValueError: it is damaged.
        """
        if self._table is None:
            self._table = LatentTable.open(self.path)
        return self._table

    def added_to(self, images: Any) -> PicturesWithValues:
        """Returns a data set whose items have a further entry ``latent`` ``[C, h, w] float16``.

        Raises:
            FileNotFoundError: there is no table yet.
            ValueError: it is damaged, or of other pictures.
        """
        return PicturesWithValues(images, self.table, LATENT, torch.float16)

    def check(self, model: Any) -> None:
        """Checks that a model takes latents from its batches, and that its own first stage made them.

        Raises:
            ValueError: it does not, or another one made them.
        """
        if not getattr(model, "takes_latents", False):
            raise ValueError(
                "data.params.latents: got a model that encodes its pictures, expected model.params.cache_latents=true"
            )
        theirs, own = self.table.card["first_stage"], fingerprint(model.first_stage_model)
        if theirs != own:
            raise ValueError(
                f"data.params.latents.first_stage has the weights {theirs[:12]}, expected those of the model's first "
                f"stage, {own[:12]}; name the same first stage in both"
            )


def _latents(stage: Any, images: Tensor) -> np.ndarray:
    """Returns the latents of pictures after a check that float16 can hold them."""
    latents = encode(stage, images.to(next(stage.parameters()).device)).cpu().to(torch.float16)
    if not latents.isfinite().all():
        raise ValueError(
            "latents: got a latent that is not finite in float16, which ends at 65504; check the weights of the first "
            "stage"
        )
    return latents.numpy()
