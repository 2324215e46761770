"""Adapting a model to other pictures: a run that starts from its weights, over a database of those pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ldm.files import atomic_path
from ldm.util import evenly, instantiate_from_config
from rdm.loading import config_beside, find_checkpoint
from rdm.retrieval.config import source_config

BATCH = 16  # small, so that a few minutes on two cores are some hundred steps
SIDE, LARGE, COLOURS = 16, 8, 12  # of pixel art: large pixels of a side, small ones of a large one, and colours


def pixel_art(drawings: Path, target: Path, n: int) -> Path:
    """Writes drawings as pixel art of 16 x 16 large pixels, a style that the shipped model was not trained on.

    Args:
        drawings: a Parquet file with a column ``image``.
        target: the Parquet file to write, with the other columns unchanged.
        n: number of drawings, spread evenly over the file.
    """
    table = pq.read_table(drawings)
    table = table.take(evenly(len(table), min(n, len(table))))
    cells = [{"bytes": _pixelated(cell["bytes"]), "path": None} for cell in table["image"].to_pylist()]
    for name, values in (("image", cells), ("style", ["pixel art"] * len(table))):
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        pq.write_table(table, temporary)
    return target


def _pixelated(data: bytes) -> bytes:
    """Returns an encoded picture with large pixels of few colours."""
    picture = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")
    buffer = io.BytesIO()
    few.resize((LARGE * SIDE, LARGE * SIDE), Image.Resampling.NEAREST).save(buffer, format="png")
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
    if not {"data", "lightning"} <= config.keys():
        raise ValueError(f"the config of {path} has no 'data' or no 'lightning', expected that of a whole run")
    data, trainer = dict(config["data"]["params"]), dict(config["lightning"].get("trainer", {}))
    source = source_config(pictures, instantiate_from_config(config["data"]).image_size)
    train = {**source, "params": {**source["params"], "keep": True}}
    has_captions = source["target"].endswith("ParquetImages")
    data |= {
        "database": {"path": str(database), "source": source},
        "train": train,
        "batch_size": min(BATCH, len(instantiate_from_config(source))),
        "caption_share": 0.5 if has_captions else 0.0,
        "stored_k": 12,
    }
    for name in ("validation", "test"):
        data.pop(name, None)
    params = {**config["model"]["params"], "ckpt_path": str(path), "scheduler_config": None, "learning_rate": 3e-4}
    trainer |= {
        "max_steps": 100_000,
        "max_time": {"seconds": round(60 * minutes)},
        "precision": "auto",
    }
    return {
        **config,
        "model": {**config["model"], "params": params},
        "data": {**config["data"], "params": data},
        "lightning": {**config["lightning"], "trainer": trainer, "callbacks": {}},
    }
