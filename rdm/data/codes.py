"""Code tables: the codes of every picture of a data set, computed once before an autoregressive model is trained.

A table is a folder with the memory-mapped ``codes.npy`` ``[images, T]`` and its card ``codes.json``, which names the
first stage that made the codes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.config import check_keys
from ldm.files import check_hash, read_json
from ldm.locks import building, delete_left_lock
from ldm.models.first_stage import fingerprint, frozen_first_stage
from ldm.stopping import going_on
from ldm.table import KEPT, ResumableTable
from ldm.util import instantiate_from_config
from rdm.data.datamodule import RetrievalDataModule
from rdm.data.query_dataset import QueryDataset
from rdm.retrieval.config import require
from rdm.retrieval.patches.identity import images_hash

LOG = logging.getLogger(__name__)
FORMAT = 1
CARD, CODES = "codes.json", "codes.npy"
_BATCH = 64
REMEDY = "delete it, and train again"


class CodeTable:
    """Line ``i`` holds the codes of item ``i`` of the data set, row by row.

    Args:
        path: the folder.
        card: the content of its ``codes.json``.

    Attributes:
        codes: ``[images, T]`` integers, memory-mapped.
    """

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path, self.card = path, dict(card)
        self.codes = np.load(path / CODES, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path) -> CodeTable:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is no table.
            ValueError: the table is damaged.
        """
        path = Path(path)
        card = read_json(path / CARD, f"no codes at {path}; main.py makes them before it trains")
        if card.get("format") != FORMAT:
            raise ValueError(f"{path / CARD} has format {card.get('format')}, this version reads {FORMAT}; {REMEDY}")
        check_hash(path / CODES, card["sha256"], REMEDY)
        return cls(path, card)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.codes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path and the card only; a worker process opens the file again."""
        return type(self), (self.path, self.card)


class CodedImages(Dataset[dict[str, Any]]):
    """Adds ``codes`` ``[T] int64`` to each item of a data set.

    Args:
        images: data set of ``ldm.data``.
        table: the codes of these pictures.

    Raises:
        ValueError: the table belongs to other pictures.
    """

    def __init__(self, images: Any, table: CodeTable) -> None:
        if table.card["image_ids"] != images_hash(images):
            raise ValueError(f"codes {table.path} belong to {len(table)} other images, got {len(images)}; {REMEDY}")
        self.images, self.table = images, table

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one picture with its codes."""
        return {**self.images[index], "codes": torch.from_numpy(self.table.codes[index].astype(np.int64))}

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the texts of one picture, without decoding it."""
        return self.images.metadata(index)


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
        if not isinstance(dataset.images, CodedImages):
            dataset.images = CodedImages(dataset.images, CodeTable.open(self.codes_path / name))
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
    path = Path(path)
    if not hasattr(stage, "nearest_codes"):
        raise ValueError(f"codes.first_stage: got {type(stage).__name__}, expected a VQ model, which has codes")
    tokens = _codes_of(stage, [images[0]["image"]]).shape[1]
    plan = {
        "format": FORMAT,
        "images": len(images),
        "image_ids": images_hash(images),
        "tokens": tokens,
        "codes": stage.quantize.n_e,
        "first_stage": fingerprint(stage),
    }
    if _differences(path, plan):
        with building(path), going_on(KEPT):
            if differs := _differences(path, plan):
                if (path / CARD).is_file():
                    LOG.warning("codes %s differ in %s; computing them again", path, ", ".join(differs))
                _fill(path, images, stage, plan, progress)
    else:
        delete_left_lock(path)
    return CodeTable.open(path)


def _differences(path: Path, plan: Mapping[str, Any]) -> list[str]:
    """Returns in what the table at ``path`` is not the wanted one; an empty list if it is."""
    card = read_json(path / CARD, REMEDY) if (path / CARD).is_file() else {}
    return [key for key in plan if card.get(key) != plan[key]]


def _fill(path: Path, images: Any, stage: Any, plan: Mapping[str, Any], progress: bool) -> None:
    """Computes the codes of all pictures, or what is left of them, and writes the table."""
    table = ResumableTable(path, len(images), plan)
    dtype = np.uint16 if plan["codes"] <= 2**16 else np.int32
    with tqdm(total=len(images), initial=table.done, unit="img", desc="codes", disable=not progress) as bar:
        for start in range(table.done, len(images), _BATCH):
            end = min(start + _BATCH, len(images))
            codes = _codes_of(stage, [images[number]["image"] for number in range(start, end)])
            table.append(codes=codes.cpu().numpy().astype(dtype))
            bar.update(end - start)
    table.finish(CARD, {**plan, "sha256": table.hashes()["codes"]})
    LOG.info("wrote codes %s: %d images, %d codes each", path, len(images), plan["tokens"])


@torch.no_grad()
def _codes_of(stage: Any, images: list[Tensor]) -> Tensor:
    """Returns the codes ``[B, T] int64`` of pictures ``[3, H, W]`` of equal size."""
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise ValueError(f"got pictures of sizes {sorted(sizes)}, expected one size; set it in the data config")
    device = next(stage.parameters()).device
    return stage.nearest_codes(stage.encode(torch.stack(images).to(device)))[2].view(len(images), -1)
