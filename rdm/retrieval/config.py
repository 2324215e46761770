"""Configs from short forms: pictures at a path, an embedder by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

import torch

from ldm.config import check_keys
from ldm.data.decode import Size, short_size
from ldm.files import located
from ldm.modules.encoders.efficientnet import NAME as EFFICIENTNET
from ldm.util import check_target, instantiate_from_config
from rdm.retrieval.embedder import Embedder

T = TypeVar("T")
_DATABASE_KEYS = ("path", "source", "patches", "batch_size", "shard_rows", "workers", "max_broken", "ray")


def require(config: Mapping[str, Any], keys: Sequence[str], where: str) -> list[Any]:
    """Returns the values of some keys.

    Args:
        config: the section.
        keys: the keys that it must have.
        where: names the section in messages.

    Raises:
        ValueError: a key is missing; the message names it and the keys that are there.
    """
    for key in keys:
        if key not in config:
            raise ValueError(f"{where} has no '{key}', it has {', '.join(config) or 'nothing'}")
    return [config[key] for key in keys]


def check_database(config: Mapping[str, Any]) -> None:
    """Checks the keys of a config's ``database`` section.

    Raises:
        ValueError: ``path`` or ``source`` is missing or of another type, or a key is unknown.
    """
    check_keys(dict(config), _DATABASE_KEYS, "database")
    path, source = require(config, ("path", "source"), "database")
    check_target(source, "database.source")
    if not isinstance(path, str | PathLike):
        raise ValueError(f"database.path: got {path!r}, expected the path of a folder")


def source_config(path: str, size: Size, split: str | None = None) -> dict[str, Any]:
    """Returns the ``{target, params}`` of pictures at a path.

    Args:
        path: a folder of images; a Parquet file, or a folder or glob pattern of such files; tar shards.
        size: size of the pictures in pixels, see :class:`ldm.data.images.ImageDataset`.
        split: keep only the rows of this split; for Parquet files only.

    Raises:
        ValueError: a split is given for something other than Parquet files.
    """
    size = short_size(size)
    if path.endswith(".parquet") or any(located(path).glob("*.parquet")):
        chosen = {"split": split} if split else {}
        return {"target": "ldm.data.ParquetImages", "params": {"files": path, "size": size, **chosen}}
    if split:
        raise ValueError(f"got split '{split}' for {path}, expected Parquet files with a column 'split'")
    if path.endswith(".tar"):
        return {"target": "ldm.data.WebDatasetImages", "params": {"shards": path, "size": size}}
    return {"target": "ldm.data.ImageFolder", "params": {"root": path, "size": size}}


def embedder_config(model: str, pretrained: str | None = None) -> dict[str, Any]:
    """Returns the ``{target, params}`` of an embedder.

    Args:
        model: a folder in open_clip's local form, the name of an open_clip architecture, or ``efficientnet_lite0``.
        pretrained: open_clip's tag of the weights, or a weights file.
    """
    if model == EFFICIENTNET:
        params = {"weights": pretrained} if pretrained else {}
        return {"target": "ldm.modules.encoders.efficientnet.EfficientNetEmbedder", "params": params}
    weights = {"pretrained": pretrained} if pretrained else {}
    return {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": model, **weights}}


def load_embedder(config: dict[str, Any]) -> Embedder:
    """Returns the embedder that a config describes, on the GPU if there is one.

    Raises:
        ValueError: the config has no ``target``, or is wrong in another way; the message says in what.
    """
    check_target(config, "embedder")
    return on_this_machine(instantiate_from_config(config))


def on_this_machine(network: T) -> T:
    """Returns an embedder or another network in evaluation mode, on the GPU if there is one."""
    if isinstance(network, torch.nn.Module):
        network = network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return network
