"""Loads a pipeline of diffusers with an adapter and a database of its own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ldm.config import read_config
from ldm.files import located
from rdm.generators.pipeline import DiffusersPipeline
from rdm.loading import Loaded
from rdm.retrieval.config import embedder_config, load_embedder, require
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.opening import retriever_of


@dataclass(frozen=True)
class GeneratorData:
    """What sampling needs to know of the data of a pipeline, in the place of a data module.

    Attributes:
        image_size: the usual height and width of images in pixels.
        same_outline: see :func:`rdm.loading.load`; above 1, copies among neighbours are kept.
        agreement: that of a data module; None, so that neighbours are the nearest rows unless ``agree`` is given.
        value_range: the values of black and white in grey pictures with more than 8 bits; unknown.
    """

    image_size: tuple[int, int]
    same_outline: float = 2.0
    agreement: None = None
    value_range: None = None


def load_generator(
    pipeline: str,
    adapter: str | None,
    database: str | None,
    only: str | Sequence[str] = (),
    config: str | None = None,
    same_outline: float | None = None,
    agree: int | None = None,
    image_encoder: str | None = None,
) -> Loaded:
    """Loads a pipeline of diffusers that is ready to sample. Its weights are loaded with the first images.

    Args:
        pipeline: see :class:`rdm.generators.pipeline.DiffusersPipeline`.
        adapter: the file of an IP-Adapter.
        database: the folder of the database that neighbours come from.
        only: see :func:`rdm.loading.load`.
        config: a file with a section ``embedder``, such as the one that the database was built with. If not given, the
            embedder is found by the name in the card of the database.
        same_outline: see :func:`rdm.loading.load`.
        agree: see there.
        image_encoder: see :class:`rdm.generators.pipeline.DiffusersPipeline`.

    Raises:
        FileNotFoundError: a folder or file does not exist.
        ValueError: adapter or database is missing, or see :class:`rdm.generators.pipeline.DiffusersPipeline`.
    """
    for name, value in {"adapter": adapter, "database": database}.items():
        if value is None:
            raise ValueError(f"got generator {pipeline} without --{name}; give the {name} that goes with it")
    opened = RetrievalDatabase.open(located(str(database)))
    model: Any = DiffusersPipeline(pipeline, str(adapter), image_encoder)
    only = [only] if isinstance(only, str) else only
    made_by = embedder_of(opened) if config is None else require(read_config([config]), ("embedder",), config)[0]
    data = GeneratorData(model.image_size)
    retriever = retriever_of(opened, partial(load_embedder, made_by), data, only, same_outline, agree)
    return Loaded(model, retriever, data, model.folder, None if config is None else located(config))


def embedder_of(database: RetrievalDatabase) -> dict[str, Any]:
    """Returns the config of the embedder that the card of a database names: a folder, or a model and its weights."""
    name = str(database.card["embedder"]["name"])
    if located(name).is_dir() or name.startswith("hf-hub:"):
        return embedder_config(name)
    model, _, weights = name.partition("/")
    return embedder_config(model, weights or None)
