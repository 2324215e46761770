"""Generation: a model samples the images of a request batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.wrapper import compile_network
from rdm.loading import Loaded, Model, as_diffusion, config_beside, load_model
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings

Draw = Callable[[Sequence[int], Sequence[int]], Tensor]
"""A function that samples: (indices of images in a request, a seed for each) -> images ``[B, 3, H, W]`` in [-1, 1]."""


def generate(
    model: Model,
    context: Tensor,
    latent_shape: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    part: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Returns images ``[B, 3, H, W]`` in [-1, 1] on the CPU, one for each context and seed.

    The last batch is padded to the full batch size. An image therefore does not depend on the other images of its
    batch; only its last bits depend on the batch size.

    Args:
        model: the model.
        context: the context of each image, ``[B, L, D]``.
        latent_shape: the shape of one latent, ``(C, h, w)``.
        seeds: the seed of each image.
        settings: the settings, completed for this model by :meth:`Settings.for_model`.
        part: the part of each context that has its own guidance scale ``text_scale``, ``[B, l, D]``.
        options: further arguments of the model's ``sample``: ``edit``, and a loaded ``weaker`` model.

    Raises:
        ValueError: the model cannot sample with an option, or the latents of the weaker model have another shape.
    """
    options = {**settings.model_options(model.kind), **options}
    size, images = settings.batch_size or 1, []
    starts = range(0, len(seeds), size)
    for start in tqdm(starts, desc="sampling", unit="batch", leave=None, disable=len(starts) < 2):
        places = [min(place, len(seeds) - 1) for place in range(start, start + size)]
        piece = context[places].to(model.device)
        null = model.null_context(piece)
        piece = piece if model.use_neighbours else null  # a model trained without neighbours sees this
        if part is not None and model.use_neighbours:
            options |= {"part": part[places].to(model.device), "part_scale": settings.text_scale}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            batch = model.sample(piece, latent_shape, [seeds[place] for place in places], null=null, **options)
        images.append(batch[: len(seeds) - start].float().clamp(-1, 1).cpu())
    return torch.cat(images)


def drawing(loaded: Loaded, request: Request, settings: Settings) -> Draw:
    """Returns the function that samples images of a request, given their indices in the request and their seeds.

    Raises:
        ValueError: the model cannot make images of this size, or the weaker model is autoregressive.
    """
    model, canvas = loaded.model, request.canvas
    size = (settings.height, settings.width) if canvas is None else canvas.picture.shape[2:]
    shape, context = loaded.latent_shape_of(*size), request.context(model.conditioner)
    part = None if settings.text_scale is None else context[:, :1]
    options: dict[str, Any] = {} if canvas is None else {"edit": canvas.edit(model)}
    if settings.weaker is not None:
        options["weaker"] = load_weaker(settings.weaker)

    def draw(places: Sequence[int], seeds: Sequence[int]) -> Tensor:
        rows = list(places)
        some = None if part is None else part[rows]
        images = generate(model, context[rows], shape, seeds, settings, some, **options)
        return images if canvas is None else canvas.paste(images)

    return draw


def load_weaker(path: str) -> Model:
    """Returns the weaker model for autoguidance.

    Raises:
        ValueError: the weaker model is autoregressive.
    """
    return as_diffusion(load_model(config_beside(Path(path))["model"], Path(path)), Path(path))


@contextmanager
def prepared(loaded: Loaded, settings: Settings) -> Iterator[Model]:
    """Yields the model with the tiling and compiled networks of the settings, and restores the model at the end."""
    model, before = loaded.model, loaded.model.first_stage_tile
    networks = model.compiled_networks() if settings.compile else []
    model.first_stage_tile = settings.tile or before
    try:
        for number, network in enumerate(networks):
            key = (number, settings.compile)
            if key not in loaded.compiled:
                compile_network(network, settings.compile, freeze=True)
                loaded.compiled[key] = network._compiled_call_impl
            network._compiled_call_impl = loaded.compiled[key]
        yield model
    finally:
        model.first_stage_tile = before
        for network in networks:
            vars(network).pop("_compiled_call_impl", None)
