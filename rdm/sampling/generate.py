"""From contexts to images: a model samples them batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.wrapper import compile_network
from rdm.loading import Loaded, Model, as_diffusion, config_beside, load_model
from rdm.sampling.settings import Settings


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

    A last batch is filled up, so an image depends on the batch size in its last bits, but on no other image.

    Args:
        model: the model.
        context: ``[B, L, D]``.
        latent_shape: ``(C, h, w)``.
        seeds: one for each image; image i depends on its seed and context, not on the batch.
        settings: of the model, see :meth:`Settings.for_model`.
        part: ``[B, l, D]``, a part of each context that is guided by a scale of its own, ``text_scale``.
        options: further arguments of the model's ``sample``: ``edit``, and a loaded ``weaker`` model.

    Raises:
        ValueError: an option that makes no image; the weaker model has another latent.
    """
    options = {**settings.model_options(model.kind), **options}
    size, images = settings.batch_size or 1, []
    starts = range(0, len(seeds), size)
    for start in tqdm(starts, desc="sampling", unit="batch", leave=None, disable=len(starts) < 2):
        places = [min(place, len(seeds) - 1) for place in range(start, start + size)]
        piece = context[places].to(model.device)
        null = model.null_context(piece)
        piece = piece if model.use_neighbours else null  # as it was trained
        if part is not None and model.use_neighbours:
            options |= {"part": part[places].to(model.device), "part_scale": settings.text_scale}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            batch = model.sample(piece, latent_shape, [seeds[place] for place in places], null=null, **options)
        images.append(batch[: len(seeds) - start].float().clamp(-1, 1).cpu())
    return torch.cat(images)


def load_weaker(path: str) -> Model:
    """Returns the weaker model of autoguidance.

    Raises:
        ValueError: it is an autoregressive one.
    """
    return as_diffusion(load_model(config_beside(Path(path))["model"], Path(path)), Path(path))


@contextmanager
def prepared(loaded: Loaded, settings: Settings) -> Iterator[Model]:
    """Yields the model with the tiles and compiled networks that settings ask for, and takes them back at the end."""
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
