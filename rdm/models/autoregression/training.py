"""Which parameters of a transformer decay in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def decay_groups(parts: Sequence[nn.Module | None], weight_decay: float) -> list[dict[str, Any]]:
    """Returns the parameters of modules in two groups for an optimizer: matrices, with weight decay, and all others.

    None stands for a module that a model lacks.
    """
    modules = nn.ModuleList([part for part in parts if part is not None])
    matrices = [m.weight for m in modules.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    decaying = {id(weight) for weight in matrices}
    others = [parameter for parameter in modules.parameters() if id(parameter) not in decaying]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
