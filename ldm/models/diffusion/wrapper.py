"""The ways in which the U-Net gets a condition: as further channels, as context tokens, or as a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.condition import Condition, Hybrid
from ldm.modules.attention import ProjectedContext
from ldm.util import check_target, instantiate_from_config, nearest

CONDITIONING_KEYS = ("concat", "crossattn", "hybrid", "adm")


def compile_network(network: nn.Module, how: bool | str, *, freeze: bool = False) -> None:
    """Makes ``torch.compile`` compile a network at its first use. The names of its weights do not change.

    Args:
        network: the network, which is compiled in place.
        how: whether to compile it, or the name of a backend other than inductor.
        freeze: on a CPU, let inductor treat the weights as constants, which is faster. The weights must not change
            afterwards, and there are no gradients.

    Raises:
        ValueError: torch has no such backend.
    """
    if how:
        backend = "inductor" if how is True else str(how)
        if backend not in (known := torch.compiler.list_backends(exclude_tags=())):
            raise ValueError(
                f"got compile={how!r}, expected true, false or a backend of torch.compile: {', '.join(known)}"
            )
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
        check_target(diff_model_config, "unet_config")
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def project(self, condition: Any) -> Any:
        """Returns the condition with its context tokens as the network's projections, which depend on neither x nor t.

        Other conditions are returned unchanged. The projections are valid until the weights change.
        """
        project = getattr(self.diffusion_model, "project_context", None)  # other networks may have no such method
        if project is None or self.conditioning_key not in ("crossattn", "hybrid"):
            return condition
        return (
            condition._replace(tokens=project(condition.tokens))
            if isinstance(condition, Hybrid)
            else project(condition)
        )

    def forward(self, x: Tensor, t: Tensor, condition: Condition | ProjectedContext = None) -> Tensor:
        """Returns the U-Net's prediction ``[B, C, h, w]``; see :meth:`project` for projected conditions.

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
