"""Exponential moving average of a model's weights, which is what samples are drawn with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Running average of all trainable parameters, kept as buffers named like them with the dots dropped.

    Early on the decay is held down to (1 + n) / (10 + n), n the number of updates, so that the average
    forgets the untrained weights. Parameters frozen when the average is made are not part of it.

    Args:
        model: the model to follow.
        decay: share of the old average in each update.
        use_num_updates: warm the decay up; else it is constant.

    Raises:
        ValueError: a decay outside [0, 1], or two parameters whose names differ only in dots.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_updates: bool = True) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"ema decay is {decay}, expected a number in [0, 1]")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_updates else -1, dtype=torch.int32))
        self.m_name2s_name: dict[str, str] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            short = name.replace(".", "")
            if short in self._buffers:
                raise ValueError(f"parameter '{name}' has the same name as another without dots; rename one")
            self.m_name2s_name[name] = short
            self.register_buffer(short, parameter.detach().clone())
        self.collected: list[Tensor] = []

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Moves the average towards the model's present weights; runs without waiting for the device."""
        counted = self.num_updates >= 0
        self.num_updates += counted.to(self.num_updates.dtype)
        warm = (1 + self.num_updates) / (10 + self.num_updates)
        share = 1 - torch.where(counted, torch.minimum(self.decay, warm), self.decay)
        pairs = list(self._pairs(model))
        averages = [average for average, _ in pairs]
        moved = torch._foreach_mul([parameter.to(average.dtype) for average, parameter in pairs], share)
        torch._foreach_mul_(averages, 1 - share)  # a few kernels for all, where one for each would keep a GPU waiting
        torch._foreach_add_(averages, moved)

    @torch.no_grad()
    def restart(self, model: nn.Module, only: Tensor | None = None, rows: Tensor | None = None) -> None:
        """Makes the average the model's present weights, of which it forgets what they were before.

        Args:
            model: the model that is followed.
            only: the one parameter whose average restarts; nothing happens where it is not followed. All by default.
            rows: ``[n] bool``, the rows of it; all by default.
        """
        for average, parameter in self._pairs(model):
            if only is None or parameter is only:
                average[... if rows is None else rows] = parameter[... if rows is None else rows].to(average.dtype)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the model's weights with the average."""
        for average, parameter in self._pairs(model):
            parameter.copy_(average)

    @torch.no_grad()
    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keeps copies of the given parameters for ``restore``."""
        self.collected = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Writes the stored copies back into the same parameters, given in the same order.

        Raises:
            ValueError: there are not as many stored copies as parameters.
        """
        parameters = list(parameters)
        if len(parameters) != len(self.collected):
            raise ValueError(
                f"got {len(parameters)} parameters to restore, expected the {len(self.collected)} stored ones"
            )
        for copy, parameter in zip(self.collected, parameters, strict=True):
            parameter.copy_(copy)
        self.collected = []

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Gives the model the averaged weights inside the ``with`` block, and its own back after it."""
        followed = [parameter for _, parameter in self._pairs(model)]
        own = [parameter.detach().clone() for parameter in followed]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(followed, own, strict=True):
                    parameter.copy_(value)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, nn.Parameter]]:
        parameters = dict(model.named_parameters())
        return [(self.get_buffer(short), parameters[name]) for name, short in self.m_name2s_name.items()]
