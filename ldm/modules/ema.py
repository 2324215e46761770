"""Exponential moving average of a model's weights, with which samples are drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """Running average of all trainable parameters, in buffers that have the parameters' names without dots.

    The decay is at most (1 + n) / (10 + n) after n updates, so that the untrained weights soon have little weight.
    Parameters that are frozen when the average is created are not part of it.

    Args:
        model: the model whose weights are averaged.
        decay: weight of the old average in each update.
        use_num_updates: limit the decay as above; otherwise it is constant.

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
        """Updates the average with the model's current weights, without a synchronisation of the device."""
        counted = self.num_updates >= 0
        self.num_updates += counted.to(self.num_updates.dtype)
        warm = (1 + self.num_updates) / (10 + self.num_updates)
        share = 1 - torch.where(counted, torch.minimum(self.decay, warm), self.decay)
        pairs = list(self._pairs(model))
        averages = [average for average, _ in pairs]
        weights = [parameter.to(average.dtype) for average, parameter in pairs]
        if share.device.type == "cpu":  # reads and writes every average once
            torch._foreach_lerp_(averages, weights, float(share))
            return
        moved = torch._foreach_mul(weights, share)
        torch._foreach_mul_(averages, 1 - share)  # a few kernels for all parameters are faster than one for each
        torch._foreach_add_(averages, moved)

    @torch.no_grad()
    def restart(self, model: nn.Module, only: Tensor | None = None, rows: Tensor | None = None) -> None:
        """Sets the average to the model's current weights, without those of earlier steps.

        Args:
            model: the model whose weights are averaged.
            only: the only parameter whose average restarts, if it is averaged; by default all of them.
            rows: the rows that restart, ``[n] bool``; by default all rows.
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
        """Gives the model the averaged weights inside the ``with`` block, and restores its own afterwards."""
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
