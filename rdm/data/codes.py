"""Code tables: the codes of every picture of a data set, computed once before an autoregressive model is trained.

See :mod:`ldm.data.picture_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.config import check_keys
from ldm.data.picture_table import PicturesWithValues, PictureTable
from ldm.models.first_stage import fingerprint, frozen_first_stage
from ldm.util import instantiate_from_config
from rdm.data.datamodule import RetrievalDataModule
from rdm.data.query_dataset import QueryDataset
from rdm.retrieval.config import require

CODES = "codes"


class CodeTable(PictureTable):
    """The codes of pictures, ``[N, T]`` integers, row by row of each picture."""

    name, setting = CODES, "data.params.codes.path"


class CodedDataModule(RetrievalDataModule):
    """Images with their neighbours and codes. The codes are computed for training only; sampling does not need them.

    Args:
        codes: ``path``, the folder of the code tables, and ``first_stage`` (``{target, params}`` with ``ckpt_path``).
        options: arguments of :class:`RetrievalDataModule`.

    Raises:
        ValueError: a key of ``codes`` is unknown or missing.
    """

    def __init__(self, codes: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        check_keys(dict(codes), ("path", "first_stage"), "codes")
        path, self.first_stage_config = require(codes, ("path", "first_stage"), "codes")
        self.codes_path = Path(path)

    def prepare_data(self) -> None:
        """Builds what is missing, see :class:`RetrievalDataModule`; within a trainer also the code tables."""
        super().prepare_data()
        if self.trainer is None:
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        stage = frozen_first_stage(self.first_stage_config).to(device)
        for name, config in self.dataset_configs.items():
            prepare_code_table(self.codes_path / name, instantiate_from_config(config), stage)

    def _dataset(self, name: str) -> QueryDataset:
        dataset = super()._dataset(name)
        if getattr(dataset.images, "entry", "") != CODES:
            table = CodeTable.open(self.codes_path / name)
            dataset.images = PicturesWithValues(dataset.images, table, CODES, torch.int64)
        return dataset


def prepare_code_table(path: str | Path, images: Any, stage: Any, *, progress: bool = True) -> CodeTable:
    """Returns the table at ``path``; builds or completes it unless it belongs to these pictures and this first stage.

    Of several processes, one builds and the others wait for it.

    Args:
        path: folder of the table; an existing table is replaced when the new one is complete.
        images: data set of ``ldm.data``.
        stage: a VQ model in evaluation mode.
        progress: show a progress bar.

    Raises:
        ValueError: the first stage has no codes, or the pictures differ in size.
    """
    if not hasattr(stage, "nearest_codes"):
        raise ValueError(f"codes.first_stage: got {type(stage).__name__}, expected a VQ model, which has codes")
    codes = stage.quantize.n_e
    dtype = np.uint16 if codes <= 2**16 else np.int32
    made_by = {"codes": codes, "first_stage": fingerprint(stage)}
    device = next(stage.parameters()).device

    def codes_of(images: Tensor) -> np.ndarray:
        found = stage.nearest_codes(stage.encode(images.to(device)))[2].view(len(images), -1)
        return found.cpu().numpy().astype(dtype)

    return CodeTable.prepare(path, images, made_by, codes_of, progress=progress)
