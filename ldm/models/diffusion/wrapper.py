"""Where a condition enters the U-Net: beside the channels, as context tokens, or as a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.util import instantiate_from_config, nearest

CONDITIONING_KEYS = ("concat", "crossattn", "hybrid", "adm")


class Hybrid(NamedTuple):
    """A condition of two parts."""

    image: Tensor
    """Joined to the channels of x_t, ``[B, C', h, w]``."""
    tokens: Tensor
    """Context tokens ``[B, L, D]``."""


Condition = Tensor | Hybrid | None


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

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """Returns what the U-Net predicts, ``[B, C, h, w]``.

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
