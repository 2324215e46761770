"""The interface of an embedder, and the functions that turn pictures into checked numpy vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ldm.pictures import from_uint8, with_channels


class Embedder(Protocol):
    """Maps images and texts to vectors of one space, as CLIP does.

    ``fingerprint`` changes whenever the same picture would get a different vector, because the weights or the
    preprocessing changed.
    """

    name: str
    fingerprint: str
    dim: int

    def images(self, images: Tensor) -> Tensor:
        """Returns raw vectors ``[B, D] float32`` of images ``[B, 3, H, W] float32`` in [-1, 1]."""

    def texts(self, texts: list[str]) -> Tensor:
        """Returns raw vectors ``[B, D] float32``."""


class SpatialEmbedder(Embedder, Protocol):
    """An embedder that also gives the feature map of a picture. Only models with ``tokens: grid`` need one."""

    def tokens(self, images: Tensor, grid: int) -> Tensor:
        """Returns the feature map of images, pooled to g x g raw tokens, ``[B, g * g, D'] float32``, row by row.

        Raises:
            ValueError: the grid does not fit the map.
        """


@torch.inference_mode()
def embed_images(embedder: Embedder, images: Sequence[Tensor], names: Sequence[str]) -> np.ndarray:
    """Returns the raw vectors of some pictures, ``[B, D] float32``.

    Args:
        embedder: the embedder; pictures are moved to the device of its weights.
        images: pictures ``[3, H, W]`` or ``[1, H, W]`` float32 in [-1, 1]; those of equal size are embedded together.
        names: a name for each picture, used in messages.

    Raises:
        ValueError: the embedder returns vectors of the wrong shape, or numbers that are not finite.
    """
    vectors = np.empty((len(images), embedder.dim), dtype=np.float32)
    for places in _by_shape(images):
        raw = embedder.images(_coloured(images, places).to(_device(embedder)))
        vectors[places] = _checked(embedder, raw, [names[place] for place in places])
    return vectors


@torch.no_grad()
def embed_tokens(embedder: Embedder, images: Sequence[Tensor], names: Sequence[str], grid: int) -> Tensor:
    """Returns the tokens of some pictures, ``[B, g * g, D'] float32`` on the device of the embedder.

    Args:
        embedder: the embedder.
        images: pictures ``[3, H, W]`` or ``[1, H, W]`` float32 in [-1, 1].
        names: a name for each picture, used in messages.
        grid: side g of the grid.

    Raises:
        ValueError: the embedder has no spatial features, or its tokens have a wrong shape or are not finite.
    """
    if not hasattr(embedder, "tokens"):
        raise ValueError(
            f"embedder {embedder.name} has no spatial features (no method tokens); use an OpenClipEmbedder, or "
            "neighbours without a grid of tokens"
        )
    spatial = cast(SpatialEmbedder, embedder)
    found: dict[int, Tensor] = {}
    for places in _by_shape(images):
        raw = spatial.tokens(_coloured(images, places).to(_device(embedder)), grid).float()
        if raw.ndim != 3 or raw.shape[:2] != (len(places), grid * grid):
            expected = f"[{len(places)}, {grid * grid}, D']"
            raise ValueError(f"embedder {embedder.name} gave tokens of shape {list(raw.shape)}, expected {expected}")
        finite = raw.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            name = names[places[finite.index(False)]]
            raise ValueError(f"embedder {embedder.name} gave tokens that are not finite for image '{name}'")
        found.update(zip(places, raw, strict=True))
    return torch.stack([found[place] for place in range(len(images))])


def embed_ahead(
    embedder: Embedder, batches: Iterable[tuple[Tensor, list[dict[str, Any]]]]
) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """Yields the raw vectors ``[B, D] float32`` and the metadata of each batch.

    On a GPU the next batch is already being embedded while the caller works on this one.

    Args:
        embedder: the embedder.
        batches: patches ``[B, H, W, 3] uint8`` and their metadata.

    Raises:
        ValueError: see :func:`embed_images`.
    """
    device = _device(embedder)
    waiting: tuple[Tensor, list[dict[str, Any]]] | None = None
    for pixels, entries in batches:
        with torch.inference_mode():
            moved = pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels
            raw = embedder.images(from_uint8(moved.permute(0, 3, 1, 2), torch.contiguous_format))
        if waiting is not None:
            yield _checked(embedder, waiting[0], [entry["image_id"] for entry in waiting[1]]), waiting[1]
        waiting = raw, entries
    if waiting is not None:
        yield _checked(embedder, waiting[0], [entry["image_id"] for entry in waiting[1]]), waiting[1]


def to_half(vectors: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns vectors ``[B, D] float32`` as float16.

    Raises:
        ValueError: a number is too large for float16; the message names the picture.
    """
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    finite = np.isfinite(half).all(axis=1)
    if not finite.all():
        place = int(np.argmin(finite))
        largest = np.abs(vectors[place]).max()
        raise ValueError(
            f"the vector of image '{names[place]}' reaches {largest:.0f}, expected at most 65504, where float16 ends; "
            "leave the image out, or name another embedder"
        )
    return half


def _checked(embedder: Embedder, raw: Tensor, names: Sequence[str]) -> np.ndarray:
    """Returns an embedder's vectors as numpy after checking their shape and that they are finite."""
    vectors = raw.float().cpu().numpy()
    expected = (len(names), embedder.dim)
    if vectors.shape != expected:
        raise ValueError(f"embedder {embedder.name} gave vectors of shape {vectors.shape}, expected {expected}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"embedder {embedder.name} gave a vector that is not finite for image '{names[int(np.argmin(finite))]}'; "
            "check its weights"
        )
    return vectors


def check_embedder(made_by: Mapping[str, str], embedder: Embedder, what: str, remedy: str) -> None:
    """Checks that something on disk was made by this embedder.

    Args:
        made_by: ``name`` and ``fingerprint`` of the embedder that made it, from its card.
        embedder: the embedder in use.
        what: names the thing in messages, such as ``"database data/databases/emoji"``.
        remedy: what the user can do about it.

    Raises:
        ValueError: another embedder made it; the message names both fingerprints.
    """
    if made_by["fingerprint"] != embedder.fingerprint:
        raise ValueError(
            f"{what} was made by embedder {made_by['name']} with fingerprint {made_by['fingerprint']}, "
            f"got embedder {embedder.name} with fingerprint {embedder.fingerprint}; {remedy}"
        )


def _coloured(images: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Returns some pictures of equal size as ``[B, 3, H, W]``."""
    return torch.stack([with_channels(images[place], 3) for place in places])


def _by_shape(images: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yields the places of the pictures of each shape; shapes come in the order of their first picture."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(place)
    yield from groups.values()


def _device(embedder: Any) -> torch.device:
    """Returns the device of an embedder's weights."""
    parameters = embedder.parameters() if isinstance(embedder, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return first.device if first is not None else torch.device("cpu")
