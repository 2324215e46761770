"""The ways in which the U-Net gets a condition: as further channels, as context tokens, or as a class."""

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
    """Channels ``[B, C', h, w]`` that are concatenated to those of x_t."""
    tokens: Tensor
    """Context tokens ``[B, L, D]``."""


Condition = Tensor | Hybrid | None


def compile_network(network: nn.Module, how: bool | str, *, freeze: bool = False) -> None:
    """Makes ``torch.compile`` compile a network at its first use. The names of its weights do not change.

    Args:
        network: the network, which is compiled in place.
        how: whether to compile it, or the name of a backend other than inductor.
        freeze: on a CPU, let inductor treat the weights as constants, which is faster. The weights must not change
            afterwards, and there are no gradients.
    """
    if how:
        backend = "inductor" if how is True else str(how)
        frozen = freeze and backend == "inductor" and next(network.parameters()).device.type == "cpu"
        network.compile(backend=backend, options={"freezing": True} if frozen else None)


class DiffusionWrapper(nn.Module):
    """Holds the U-Net with the name in CompVis' checkpoints, ``model.diffusion_model``, and passes conditions to it.

    ============= ==============================================================
    ``concat``    channels ``[B, C', h, w]`` that are concatenated to those of x_t
    ``crossattn`` context tokens ``[B, L, D]``
    ``hybrid``    both of these, as a :class:`Hybrid`
    ``adm``       class numbers ``[B] int64``
    ``None``      no condition
    ============= ==============================================================

    Args:
        diff_model_config: the U-Net.
        conditioning_key: the kind of condition, see the table.

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
        """Returns the network's projections of context tokens, which depend on neither x nor t.

        Other conditions are returned unchanged. The projections are valid until the weights change.
        """
        project = getattr(self.diffusion_model, "project_context", None)  # other networks may have no such method
        looked_at = self.conditioning_key in ("crossattn", "hybrid")
        return condition if project is None or not looked_at else project(condition)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | ProjectedContext = None) -> Tensor:
        """Returns the U-Net's prediction ``[B, C, h, w]``. Tokens can be projected, also those of a hybrid.

        Raises:
            ValueError: the condition is of another kind than ``conditioning_key``.
        """
        key = self.conditioning_key
        if (condition is None) != (key is None) or isinstance(condition, Hybrid) != (key == "hybrid"):
            raise ValueError(f"condition: got {type(condition).__name__}, expected what conditioning_key '{key}' names")
        if isinstance(condition, Hybrid):
            return self.diffusion_model(torch.cat([x, condition.image], dim=1), t, context=condition.tokens)
        if key == "concat":
            return self.diffusion_model(torch.cat([x, condition], dim=1), t)  # type: ignore[list-item]
        return self.diffusion_model(x, t, **{"y" if key == "adm" else "context": condition})
