"""Where a condition enters the U-Net: beside the channels, as context tokens, or as a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.modules.attention import ProjectedContext
from ldm.util import instantiate_from_config, nearest

CONDITIONING_KEYS = ("concat", "crossattn", "hybrid", "adm")


class Hybrid(NamedTuple):
    """A condition of two parts."""

    image: Tensor
    """Joined to the channels of x_t, ``[B, C', h, w]``."""
    tokens: Tensor
    """Context tokens ``[B, L, D]``."""


Condition = Tensor | Hybrid | None


def compile_network(network: nn.Module, how: bool | str, *, freeze: bool = False) -> None:
    """Lets ``torch.compile`` compile a network at its first use; the names of its weights stay as they are.

    Args:
        network: compiled in place.
        how: whether to, or the name of a backend other than inductor.
        freeze: for a network whose weights change no more and which needs no gradients: inductor makes constants of
            them on a CPU, which is faster still.
    """
    if how:
        backend = "inductor" if how is True else str(how)
        frozen = freeze and backend == "inductor" and next(network.parameters()).device.type == "cpu"
        network.compile(backend=backend, options={"freezing": True} if frozen else None)


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under the name that checkpoints know, ``model.diffusion_model``.

    Args:
        diff_model_config: the U-Net.
        conditioning_key: what a condition is: ``concat``, channels ``[B, C', h, w]`` beside those of x_t;
            ``crossattn``, context tokens ``[B, L, D]``; ``hybrid``, both, as a :class:`Hybrid`; ``adm``, classes
            ``[B] int64``; ``None``, there is none.

    Raises:
        ValueError: an unknown key.
    """

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None = None) -> None:
        super().__init__()
        if conditioning_key is not None and conditioning_key not in CONDITIONING_KEYS:
            hint = nearest(conditioning_key, CONDITIONING_KEYS)
            raise ValueError(
                f"conditioning_key: got '{conditioning_key}', expected one of {', '.join(CONDITIONING_KEYS)}{hint}"
            )
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def project(self, condition: Tensor) -> Tensor | ProjectedContext:
        """Returns context tokens with all done to them that depends on neither x nor t; other conditions as they are.

        They hold as long as the weights do: make them anew for every sampling run.
        """
        project = getattr(self.diffusion_model, "project_context", None)  # another network may have nothing to do
        looked_at = self.conditioning_key in ("crossattn", "hybrid")
        return condition if project is None or not looked_at else project(condition)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | ProjectedContext = None) -> Tensor:
        """Returns what the U-Net predicts, ``[B, C, h, w]``; tokens may be projected, also those of a hybrid.

        Raises:
            ValueError: a condition of another kind than the model has.
        """
        key = self.conditioning_key
        if (condition is None) != (key is None) or isinstance(condition, Hybrid) != (key == "hybrid"):
            raise ValueError(f"condition: got {type(condition).__name__}, expected what conditioning_key '{key}' names")
        if isinstance(condition, Hybrid):
            return self.diffusion_model(torch.cat([x, condition.image], dim=1), t, context=condition.tokens)
        if key == "concat":
            return self.diffusion_model(torch.cat([x, condition], dim=1), t)  # type: ignore[list-item]
        return self.diffusion_model(x, t, **{"y" if key == "adm" else "context": condition})
