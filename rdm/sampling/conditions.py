"""Conditions of a model: context tokens, the latents of the neighbours, and the parts that have their own scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.condition import Hybrid, of_tensors
from ldm.pictures import from_uint8, with_channels
from rdm.loading import Loaded
from rdm.models.references import References
from rdm.retrieval.database.outlines import outline
from rdm.retrieval.database.pictures import grid_tokens, pictures
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.request import ALONE, Request
from rdm.sampling.settings import Settings
from rdm.sampling.shown import ShownPicture, ShownRows

Part = tuple[Tensor | Hybrid, float]
"""A part of a condition, and its guidance scale."""
_BATCH = 16


def has_references(model: Any) -> bool:
    """Returns whether a model sees the latents of the neighbours beside their embeddings."""
    return getattr(model, "references", None) is not None


def reference_latents(
    loaded: Loaded,
    rows: np.ndarray,
    height: int,
    width: int,
    given: Sequence[ShownPicture] = (),
    least: float | None = None,
) -> Tensor:
    """Returns the latents of database rows ``[B, K]``, scaled like those of images, ``[B, K, C, h, w]``.

    Args:
        loaded: model and database.
        rows: the rows, whose pictures are read from the source of the database and stretched to the size of the images.
        height: of the images in pixels.
        width: of the images in pixels.
        given: given pictures, which have the numbers -1, -2 and so on in place of rows.
        least: the latents of a picture are zeros if its outline correlates less than this with that of the first one
            of the same image; None keeps all.

    Raises:
        FileNotFoundError: the source of the database has moved.
        ValueError: the source holds other pictures than the database was built from.
    """
    model, shown = loaded.diffusion, ShownRows(loaded.retriever.database, given)

    def encoded(some: np.ndarray) -> Tensor:
        try:
            images = pictures(shown, some, (height, width))
        except (OSError, ValueError) as error:
            remedy = "set reference_scale to 0 to sample without the pictures of the neighbours"
            raise type(error)(f"{error}; or {remedy}") from error
        images = with_channels(images, model.image_channels).to(model.device)
        parts = [model.to_latent(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        latents = torch.cat(parts)
        if least is not None:
            latents[~_agree(shown, some, least)] = 0
        return latents

    return _of_each(encoded, rows)


def _agree(shown: ShownRows, rows: np.ndarray, least: float) -> np.ndarray:
    """Returns whose outlines correlate at least this much with that of the first row, ``[K] bool``; the first does."""
    patches = shown.patches(rows)
    outlines = np.stack([outline(from_uint8(torch.from_numpy(patch).permute(2, 0, 1))) for patch in patches])
    agree = outlines @ outlines[0] >= least
    agree[0] = True
    return agree


def _of_each(made: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> Tensor:
    """Returns what a function makes of the rows ``[K]`` of each image, ``[B, K, ...]``.

    The rows of an image are never processed together with those of another one. Their last bits therefore do not depend
    on the other images of the batch.
    """
    found = {line.tobytes(): line for line in rows}
    tensors = {key: made(line) for key, line in found.items()}
    return torch.stack([tensors[line.tobytes()] for line in rows])


def with_grids(loaded: Loaded, context: Tensor, rows: np.ndarray, given: Sequence[ShownPicture] = ()) -> Tensor:
    """Returns the context with the grid of tokens of each neighbour, for a model that sees them; else the given one.

    Args:
        loaded: model and database.
        context: ``[B, L, D]``, whose last K tokens are the pooled vectors of the neighbours.
        rows: their rows ``[B, K]``, whose pictures are read from the source of the database.
        given: see :func:`reference_latents`.

    Returns:
        ``[B, L - K + K * (1 + g * g), D]``.

    Raises:
        FileNotFoundError: the source of the database has moved.
        ValueError: the source holds other pictures than the database was built from, or none is recorded; or the
            embedder has no tokens for this grid.
    """
    module, grid = loaded.model.grid_tokens, loaded.model.conditioner.grid
    if module is None or grid is None:
        return context
    retriever, first = loaded.retriever, context.shape[1] - rows.shape[1]
    shown = ShownRows(retriever.database, given)
    grids = _of_each(lambda some: grid_tokens(shown, some, retriever.embedder, grid), rows).to(context)
    return torch.cat([context[:, :first], module(context[:, first:], grids)], dim=1)


def context_of(loaded: Loaded, request: Request) -> Tensor:
    """Returns the context ``[B, L, D]`` of a request, in which neighbours have their grids of tokens.

    Args:
        loaded: model and database.
        request: the request. The query has its vector only.
    """
    context = request.context(loaded.model.conditioner)
    if request.tokens in ALONE:
        return context
    return with_grids(loaded, context, request.retrieved.rows, request.pictures)


def condition_of(loaded: Loaded, retrieved: Retrieved, size: Sequence[int] | None = None) -> Tensor | Hybrid:
    """Returns the condition of the neighbours alone, with the latents that sampling shows if nothing else is asked for.

    Args:
        loaded: model and database.
        retrieved: the neighbours.
        size: height and width of the images in pixels; if not given, those of training.
    """
    model = loaded.model
    tokens = with_grids(loaded, model.conditioner(retrieved.embeddings, include_query=False), retrieved.rows)
    references: References | None = getattr(model, "references", None)
    if references is None:
        return tokens
    height, width = size or loaded.data.image_size
    latents = reference_latents(loaded, retrieved.rows, height, width, least=references.agreement)
    return loaded.diffusion.with_references(tokens, latents)


class Conditions:
    """The conditions of the images of a request.

    Args:
        loaded: model and database.
        request: the request.
        settings: the settings.
        size: height and width of the images in pixels.
        latent_shape: ``(C, h, w)`` of the images.
    """

    def __init__(
        self, loaded: Loaded, request: Request, settings: Settings, size: Sequence[int], latent_shape: Sequence[int]
    ) -> None:
        self.model: Any = loaded.model
        self.settings = settings
        self.tokens = context_of(loaded, request)
        self.latents = None
        if not has_references(self.model):
            return
        self.shown = settings.reference_scale != 0 and request.tokens not in ALONE
        if self.shown:
            least = settings.reference_agreement if request.is_found else None
            rows = request.retrieved.rows
            self.latents = reference_latents(loaded, rows, size[0], size[1], request.pictures, least)
        else:
            self.latents = torch.zeros(len(self.tokens), 1, *latent_shape, device=self.tokens.device)

    def of(self, places: Sequence[int], seeds: Sequence[int]) -> tuple[Tensor | Hybrid, list[Part], float]:
        """Returns the condition of some images, its parts with their scales, and its own scale, see ``guide``.

        Args:
            places: the places of the images in the request.
            seeds: the seed of each image, on which the noise of its references depends.
        """
        some, settings = list(places), self.settings
        tokens, scale = self.tokens[some], settings.guidance
        condition: Tensor | Hybrid = tokens
        if self.latents is not None:
            condition = self.model.with_references(tokens, self.latents[some], settings.reference_noise, seeds)
        without = _without_references(condition)
        parts: list[Part] = []
        if settings.text_scale is not None:
            text = tokens[:, :1].expand_as(tokens)  # attention over equal tokens is that over one of them
            parts.append((without._replace(tokens=text) if isinstance(without, Hybrid) else text, settings.text_scale))
        if self.latents is not None and self.shown and settings.reference_scale is not None:
            parts.append((without, scale))
            scale = settings.reference_scale
        return condition, parts, scale


def _without_references(condition: Tensor | Hybrid) -> Tensor | Hybrid:
    if isinstance(condition, Hybrid):
        return condition._replace(image=torch.zeros_like(condition.image))
    return condition


def chosen(condition: Tensor | Hybrid | None, places: Sequence[int], device: torch.device) -> Any:
    """Returns the condition of some images, on a device."""
    return of_tensors(lambda each: each[list(places)].to(device), condition)
