"""Generation: a model samples the images of a request batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.decode import MAX_PIXELS
from ldm.models.diffusion.condition import Hybrid
from ldm.models.diffusion.wrapper import compile_network
from rdm.loading import Loaded, Model, as_diffusion, config_beside, is_plain, load_model
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion
from rdm.sampling.canvas import Canvas
from rdm.sampling.conditions import Conditions, Part, chosen, context_of, has_references
from rdm.sampling.plain import PlainConditions
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings
from rdm.sampling.watching import Progress

Draw = Callable[[Sequence[int], Sequence[int]], Tensor]
"""A function that samples: (indices of images in a request, a seed for each) -> images ``[B, 3, H, W]`` in [-1, 1]."""


def generate(
    model: Model,
    context: Tensor | Hybrid | None,
    latent_shape: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    parts: Sequence[Part] = (),
    weaker_context: Tensor | Hybrid | None = None,
    canvas: Canvas | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Tensor:
    """Returns images ``[B, 3, H, W]`` in [-1, 1] on the CPU, one for each context and seed.

    The last batch is padded to the full batch size. An image therefore does not depend on the other images of its
    batch; only its last bits depend on the batch size.

    Args:
        model: the model.
        context: the context of each image, ``[B, L, D]``, or a hybrid condition with it; None for a model without a
            condition.
        latent_shape: the shape of one latent, ``(C, h, w)``.
        seeds: the seed of each image.
        settings: the settings, completed for this model by :meth:`Settings.for_model`.
        parts: parts of the context that have their own guidance scales, see :func:`guide`.
        weaker_context: the context of the weaker model if it is not that of the model.
        canvas: the picture that is edited, whose kept pixels are pasted over the images.
        progress: tells a watcher of each step.
        options: further arguments of the model's ``sample``, which replace those of the settings: ``scale``, ``edit``,
            and a loaded ``weaker`` model.

    Raises:
        ValueError: the model cannot sample with an option, or the latents of the weaker model have another shape.
    """
    options = {**settings.model_options(model.kind), **options}
    images = []
    for places, left in batches(len(seeds), settings, progress):
        piece = chosen(context, places, model.device)
        null = model.null_context(piece)
        if getattr(model, "use_neighbours", True):
            options["parts"] = [(chosen(part, places, model.device), scale) for part, scale in parts]
            if weaker_context is not None:
                options["weaker_context"] = chosen(weaker_context, places, model.device)
        else:  # a model trained without neighbours sees the null context
            piece = null
        finish = partial(finished, count=left, canvas=canvas)
        if progress is not None:
            options["watch"] = progress.batch(finish)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            batch = model.sample(piece, latent_shape, [seeds[place] for place in places], null=null, **options)
        images.append(finish(batch))
    return torch.cat(images)


def batches(count: int, settings: Settings, progress: Progress | None) -> Iterator[tuple[list[int], int]]:
    """Yields the places of the images of each batch, and the number of images that are left with it.

    The last batch is filled up with its last image, so that no bit of an image depends on the number of the others.
    """
    size = settings.batch_size or 1
    starts = range(0, count, size)
    if progress is not None:
        progress.draw(len(starts))
    for start in tqdm(starts, desc="sampling", unit="batch", leave=None, disable=len(starts) < 2):
        yield [min(place, count - 1) for place in range(start, start + size)], count - start


def finished(batch: Tensor, count: int, canvas: Canvas | None) -> Tensor:
    """Returns the first images of a batch as they are saved."""
    images = batch[:count].float().clamp(-1, 1).cpu()
    return images if canvas is None else canvas.paste(images)


def drawing(
    loaded: Loaded,
    request: Request,
    settings: Settings,
    weaker: RetrievalAugmentedDiffusion | None = None,
    progress: Progress | None = None,
) -> Draw:
    """Returns the function that samples images of a request, given their indices in the request and their seeds.

    Args:
        loaded: model and database.
        request: the request. What the model sees of all its images is computed at once.
        settings: the settings.
        weaker: the weaker model that the settings name, see :func:`load_weaker`.
        progress: tells a watcher of each step.

    Raises:
        ValueError: the model cannot make images of this size, or the pictures of the neighbours cannot be read although
            the model sees them.
    """
    model, whole, (height, width) = loaded.model, request.canvas, loaded.data.image_size
    canvas = None if whole is None else whole.fitted(loaded.diffusion)
    size = (settings.height or height, settings.width or width) if canvas is None else tuple(canvas.picture.shape[2:])
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"got images of {size[0]} x {size[1]} pixels, expected at most {MAX_PIXELS:,}, which can be read"
        )
    shape = loaded.latent_shape_of(*size)
    conditions = conditions_of(loaded, request, settings, size, shape)
    options: dict[str, Any] = {"canvas": whole, "progress": progress}
    if canvas is not None:
        options["edit"] = canvas.edit(model)
    weaker_tokens: Tensor | None = None
    weaker_conditions: PlainConditions | None = None
    if weaker is not None:
        options["weaker"] = weaker
        if loaded.is_plain:  # each has a cond stage of its own
            weaker_conditions = PlainConditions(weaker, request, settings)
        elif any(each.grid_tokens is not None for each in (model, weaker)):  # each projects tokens in its own way
            weaker_tokens = context_of(replace(loaded, model=weaker), request)

    def draw(places: Sequence[int], seeds: Sequence[int]) -> Tensor:
        context, parts, scale = conditions.of(places, seeds)
        if weaker_conditions is not None:
            options["weaker_context"] = weaker_conditions.of(places, seeds)[0]
        if weaker_tokens is not None:
            own = weaker_tokens[list(places)]
            options["weaker_context"] = context._replace(tokens=own) if isinstance(context, Hybrid) else own
        return generate(model, context, shape, seeds, settings, parts, scale=scale, **options)

    return draw


def conditions_of(
    loaded: Loaded, request: Request, settings: Settings, size: Sequence[int], latent_shape: Sequence[int]
) -> Conditions | PlainConditions:
    """Returns the conditions of the images of a request, for the arguments of :class:`Conditions`."""
    if loaded.is_plain:
        return PlainConditions(loaded.plain, request, settings)
    return Conditions(loaded, request, settings, size, latent_shape)


def load_weaker(path: str, loaded: Loaded) -> RetrievalAugmentedDiffusion:
    """Returns the weaker model for the autoguidance of a model.

    Raises:
        ValueError: the weaker model is autoregressive or of another kind of condition, or sees references which the
            model does not see.
    """
    config = config_beside(Path(path))["model"]
    if is_plain(config) != loaded.is_plain:
        raise ValueError(f"{path} has another kind of condition than {loaded.path}; give another weaker model")
    weaker = as_diffusion(load_model(config, Path(path)), Path(path))
    if loaded.is_plain and weaker.reads != loaded.plain.reads:
        raise ValueError(f"{path} reads {weaker.reads}, {loaded.path} {loaded.plain.reads}; give another weaker model")
    if has_references(weaker) and not has_references(loaded.model):
        raise ValueError(f"{path} sees reference latents, which {loaded.path} does not; give another weaker model")
    return weaker


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
