"""Short forms of configs, for pictures at a path and an embedder by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.config import check_keys
from ldm.util import instantiate_from_config
from rdm.retrieval.embedder import Embedder

_DATABASE_KEYS = ("path", "source", "patches", "batch_size", "shard_rows", "workers", "max_broken", "ray")


def require(config: Mapping[str, Any], keys: Sequence[str], where: str) -> list[Any]:
    """Returns the values of some keys.

    Raises:
        ValueError: one is missing; names it and what there is.
    """
    for key in keys:
        if key not in config:
            raise ValueError(f"{where} has no '{key}', it has {', '.join(config) or 'nothing'}")
    return [config[key] for key in keys]


def check_database(config: Mapping[str, Any]) -> None:
    """Checks the ``database`` section of a config: where it lies, what it is made from, how it is built.

    Raises:
        ValueError: ``path`` or ``source`` is missing, or a key is unknown; names the nearest.
    """
    check_keys(dict(config), _DATABASE_KEYS, "database")
    require(config, ("path", "source"), "database")


def source_config(path: str, size: int, split: str | None = None) -> dict[str, Any]:
    """Returns the ``{target, params}`` of pictures at a path.

    Args:
        path: a folder of images; a Parquet file, a folder or glob pattern of them; tar shards.
        size: side of the pictures in pixels.
        split: keep the rows of this split; for Parquet only.

    Raises:
        ValueError: a split is asked of something other than Parquet files.
    """
    if path.endswith(".parquet") or (Path(path).is_dir() and any(Path(path).glob("*.parquet"))):
        chosen = {"split": split} if split else {}
        return {"target": "ldm.data.ParquetImages", "params": {"files": path, "size": size, **chosen}}
    if split:
        raise ValueError(f"got split '{split}' for {path}, expected Parquet files with a column 'split'")
    if path.endswith(".tar"):
        return {"target": "ldm.data.WebDatasetImages", "params": {"shards": path, "size": size}}
    return {"target": "ldm.data.ImageFolder", "params": {"root": path, "size": size}}


def embedder_config(model: str, pretrained: str | None = None) -> dict[str, Any]:
    """Returns the ``{target, params}`` of a CLIP model.

    Args:
        model: a folder in open_clip's local form, or the name of an open_clip architecture.
        pretrained: open_clip's tag of the weights, or a file.
    """
    weights = {"pretrained": pretrained} if pretrained else {}
    return {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": model, **weights}}


def load_embedder(config: dict[str, Any]) -> Embedder:
    """Returns the embedder a config describes, on the GPU where there is one."""
    return on_this_machine(instantiate_from_config(config))


def on_this_machine(embedder: Embedder) -> Embedder:
    """Returns an embedder ready for use, on the GPU where there is one."""
    if isinstance(embedder, torch.nn.Module):
        embedder = embedder.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return embedder
