"""Adapting a model to other pictures: a run that starts from its weights, over a database of those pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ldm.files import atomic_path
from ldm.util import evenly
from rdm.loading import config_beside, find_checkpoint
from rdm.retrieval.config import source_config

PAPER = np.array([24, 62, 120], dtype=np.float32)  # the blue of a blueprint, RGB


def blueprints(drawings: Path, target: Path, n: int) -> Path:
    """Writes black line drawings as white lines on blue, a style that the shipped model was not trained on.

    Args:
        drawings: a Parquet file of line drawings on white, with a column ``image``.
        target: the Parquet file to write, with the other columns unchanged.
        n: number of drawings, spread evenly over the file.
    """
    table = pq.read_table(drawings)
    table = table.take(evenly(len(table), min(n, len(table))))
    cells = [{"bytes": _blueprint(cell["bytes"]), "path": None} for cell in table["image"].to_pylist()]
    place = table.column_names.index("image")
    table = table.set_column(place, "image", pa.array(cells, table.schema.field("image").type))
    if "style" in table.column_names:
        table = table.set_column(table.column_names.index("style"), "style", pa.array(["blueprint"] * len(table)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        pq.write_table(table, temporary)
    return target


def _blueprint(data: bytes) -> bytes:
    """Returns an encoded picture with its darkness as white on blue."""
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=np.float32)[..., None] / 255
    buffer = io.BytesIO()
    Image.fromarray((PAPER + (255 - PAPER) * (1 - grey)).astype(np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


def adapting_config(checkpoint: str | None, pictures: str, database: Path, minutes: float) -> dict[str, Any]:
    """Returns the config of a run that adapts a diffusion model to pictures.

    Args:
        checkpoint: the model to start from, see :func:`rdm.loading.find_checkpoint`.
        pictures: a folder of pictures, Parquet files or tar shards.
        database: the folder of their database, which is built if it is missing.
        minutes: time to train.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its config describes no run.
    """
    path = find_checkpoint(checkpoint)
    config: dict[str, Any] = config_beside(path)
    data, trainer = dict(config["data"]["params"]), dict(config["lightning"]["trainer"])
    size = _size(data["train"])
    source = source_config(pictures, size)
    train = {**source, "params": {**source["params"], "keep": True}}
    has_captions = source["target"].endswith("ParquetImages")
    data |= {
        "database": {"path": str(database), "source": source},
        "train": train,
        "validation": source,
        "caption_share": 0.5 if has_captions else 0.0,
        "stored_k": 12,
    }
    data.pop("test", None)
    params = {**config["model"]["params"], "ckpt_path": str(path), "scheduler_config": None, "learning_rate": 3e-4}
    trainer |= {
        "max_steps": 100_000,
        "max_time": {"seconds": round(60 * minutes)},
        "precision": "auto",
        "val_check_interval": 100_000,  # steps, as there is no validation by epochs
        "check_val_every_n_epoch": None,
    }
    return {
        **config,
        "model": {**config["model"], "params": params},
        "data": {**config["data"], "params": data},
        "lightning": {**config["lightning"], "trainer": trainer, "callbacks": {}},
    }


def _size(train: Mapping[str, Any]) -> int:
    size: int = train["params"]["size"]
    return size
