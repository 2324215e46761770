"""A pipeline of diffusers as a generator: it sees the prompt, and the neighbours as image prompts of its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.files import file_hash, portable
from rdm.generators.adapter import POOLED
from rdm.generators.hashes import hashes_of
from rdm.generators.library import diffusers_library, transformers_library
from rdm.generators.pipeline import DiffusersPipeline, ImagePrompts
from rdm.generators.protocol import Drawing, Source
from rdm.loading import Loaded
from rdm.sampling.generate import Draw, batches, finished
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings
from rdm.sampling.shown import ShownRows
from rdm.sampling.values import REPEATS
from rdm.sampling.watching import Progress

TOKENS = ("neighbours", "text")


class ImagePromptGenerator:
    """Draws with a pipeline of diffusers; see :class:`rdm.generators.protocol.Generator`.

    Args:
        loaded: the pipeline with the database that neighbours come from.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.pipeline = loaded, pipeline_of(loaded)

    def complete(self, request: Request, settings: Settings) -> Settings:
        """Returns the settings completed with those of the pipeline's own call.

        Raises:
            ValueError: a setting or the request asks for what a pipeline of diffusers does not do, or the forecast of
                memory is more than is free.
        """
        if request.tokens not in TOKENS:
            raise ValueError(
                f"got tokens '{request.tokens}' for a pipeline of diffusers, which sees the prompt and the neighbours "
                f"anyway; expected {' or '.join(TOKENS)}, or give the picture as a neighbour"
            )
        settings = settings.for_model(self.pipeline)
        if settings.eta and settings.sampler != "ddim":
            raise ValueError(f"got eta={settings.eta} with sampler={settings.sampler}, expected sampler ddim for eta")
        size = self.pipeline.size_of(settings)
        if request.canvas is not None:
            about = request.canvas.about
            if about["repeats"] != REPEATS:
                raise ValueError(f"got repeats={about['repeats']}, which a pipeline of diffusers has not; leave it out")
            if int((settings.steps or 1) * about["strength"]) < 1:
                raise ValueError(
                    f"got strength={about['strength']} with steps={settings.steps}, of which no step is left; raise "
                    "one of them"
                )
            height, width = request.canvas.fitted(self.pipeline).picture.shape[2:]
            size = (height, width)
        self.pipeline.check(settings, size)
        return settings

    def drawing(self, settings: Settings) -> Drawing:
        """Returns the function that draws with completed settings."""

        @contextmanager
        def of_part(part: Request, progress: Progress | None) -> Iterator[Draw]:
            yield self._drawing(part, settings, progress)

        return of_part

    def _drawing(self, request: Request, settings: Settings, progress: Progress | None) -> Draw:
        whole = request.canvas
        canvas = None if whole is None else whole.fitted(self.pipeline)
        prompts = [""] * len(request.seeds) if request.prompts is None else list(request.prompts)
        shown = None
        if request.tokens == "neighbours" and settings.neighbour_scale:
            shown = image_prompts(self.loaded, request, settings)

        def draw(places: Sequence[int], seeds: Sequence[int]) -> Tensor:
            images = []
            for numbers, left in batches(len(seeds), settings, progress):
                some = [places[number] for number in numbers]
                finish = partial(finished, count=left, canvas=whole)
                batch = self.pipeline.draw(
                    [prompts[place] for place in some],
                    None if shown is None else ImagePrompts(shown.shown[some], shown.nothing[some]),
                    [seeds[number] for number in numbers],
                    settings,
                    canvas,
                    None if progress is None else progress.batch(finish),
                )
                images.append(finish(batch))
            return torch.cat(images)

        return draw

    def about(self, settings: Settings) -> dict[str, Any]:  # noqa: ARG002 (it is made of the same with all settings)
        """Returns pipeline, adapter and image encoder with their hashes, and the versions of the libraries."""
        pipeline = self.pipeline
        encoder = "database" if pipeline.trusts_database else pipeline.encoder and portable(pipeline.encoder)
        config = self.loaded.config
        return {
            **({} if config is None else {"config": str(config), "config_sha256": file_hash(config)}),
            "generator": {
                "pipeline": portable(pipeline.folder) if pipeline.name == str(pipeline.folder) else pipeline.name,
                "class": pipeline.class_name,
                "adapter": portable(pipeline.adapter.path),
                "image_encoder": encoder,
                "neighbours_as": "vectors" if takes_vectors(self.loaded) else "pictures",
                **hashes_of(pipeline),
            },
            "diffusers": diffusers_library().__version__,
            "transformers": transformers_library().__version__,
        }

    def sources(self, record: Mapping[str, Any]) -> list[Source]:
        """Returns pipeline, adapter and image encoder that a record names."""
        named, pipeline = record["generator"], self.pipeline
        words = {
            "pipeline_sha256": f"pipeline {pipeline.folder}",
            "adapter_sha256": f"adapter {pipeline.adapter.path}",
            "image_encoder_sha256": f"image encoder {pipeline.encoder}",
        }
        found = [(words[key], value, named[key]) for key, value in hashes_of(pipeline).items()]
        if config := self.loaded.config:
            found.append((f"config {config}", file_hash(config), record["config_sha256"]))
        return found


def pipeline_of(loaded: Loaded) -> DiffusersPipeline:
    """Returns the pipeline in the place of a loaded model."""
    model: Any = loaded.model
    return model


def takes_vectors(loaded: Loaded) -> bool:
    """Returns whether the adapter takes the vectors of the database as they are, so that no picture is read.

    It does if it takes the vectors of pictures, and its image encoder is the embedder of the database. If their widths
    are equal, both embed one picture, and the two vectors are compared; the result is kept.

    Raises:
        ValueError: the embedder of the database is said to be the encoder, but its vectors have another width.
    """
    pipeline = pipeline_of(loaded)
    adapter, database = pipeline.adapter, loaded.retriever.database
    fits = adapter.takes == POOLED and database.dim == adapter.width
    if pipeline.trusts_database:
        if not fits:
            raise ValueError(
                f"database {database.path} has vectors of width {database.dim} by {database.card['embedder']['name']}, "
                f"adapter {adapter.path} takes {adapter.width}; give the adapter's encoder as --image_encoder FOLDER, "
                "or a database of that encoder"
            )
        return True
    if not fits or pipeline.encoder is None:
        return False
    return pipeline.has_encoder_of(loaded.retriever.embedder)


def image_prompts(loaded: Loaded, request: Request, settings: Settings) -> ImagePrompts:
    """Returns what the adapter is shown of the neighbours of all images of a request.

    Raises:
        FileNotFoundError: pictures are needed, and the source of the database has moved.
        ValueError: pictures are needed, and there is no image encoder, or the source of the database holds others than
            it was built from.
    """
    pipeline = pipeline_of(loaded)
    if takes_vectors(loaded):
        shown = request.retrieved.embeddings.float().cpu()
        nothing = torch.zeros_like(shown)
    else:
        embed, empty = _by_pictures(loaded, request, settings)
        rows = request.retrieved.rows
        known = {number: embed(number) for number in dict.fromkeys(rows.ravel().tolist())}
        shown = torch.stack([torch.stack([known[number] for number in line]) for line in rows.tolist()])
        nothing = empty.expand_as(shown)
        if settings.offload != "none":
            pipeline.image_encoder(settings.precision).release()
    if settings.combine == "mean":
        shown, nothing = shown.mean(1, keepdim=True), nothing[:, :1]
    return ImagePrompts(shown.to(pipeline.device), nothing.to(pipeline.device))


def _by_pictures(loaded: Loaded, request: Request, settings: Settings) -> tuple[Callable[[int], Tensor], Tensor]:
    """Returns a function that embeds the picture of a row's number, and what stands for no picture."""
    pipeline = pipeline_of(loaded)
    database = loaded.retriever.database
    if pipeline.encoder is None:
        raise ValueError(
            f"adapter {pipeline.adapter.path} has no image encoder, neither in {pipeline.adapter.path.parent} nor in "
            f"the pipeline; give it as --image_encoder FOLDER, or as --image_encoder database if it is the embedder of "
            f"the database ({database.card['embedder']['name']}, width {database.dim})"
        )
    encoder, shown = pipeline.image_encoder(settings.precision), ShownRows(database, request.pictures)

    def embed(number: int) -> Tensor:
        try:
            (picture,) = shown.patches(np.array([number], dtype=np.int64))
        except (OSError, ValueError) as error:
            raise type(error)(
                f"{error}; the adapter needs the pictures of the neighbours, as database {database.path} was made by "
                f"another encoder ({database.card['embedder']['name']}) than the adapter's"
            ) from error
        return encoder.embed(picture)

    return embed, encoder.nothing()
