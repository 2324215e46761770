"""Batch norms whose statistics are those of the whole batch of a step, on all processes and on any device."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn

from ldm.parallel import processes, summed

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SharedNorms(LayerSync):
    """Lets the batch norms of a model share their statistics while it is trained on several processes.

    ``torch.nn.SyncBatchNorm``, which Lightning's ``sync_batchnorm`` uses, does not run on CPUs. The names of weights
    and statistics do not change.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Returns the model, whose batch norms share their statistics from now on."""
        for module in model.modules():
            if type(module) in NORMS:
                module.__class__ = _SHARED[type(module)]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Returns the model with batch norms as they were."""
        for module in model.modules():
            if type(module) in _SHARED.values():
                module.__class__ = type(module).__mro__[2]
        return model


class _SharedNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[N, C, ...]``, normalised in training by mean and variance over the N of all processes."""
        if not self.training or processes() == 1:
            return super().forward(x)
        over = [dim for dim in range(x.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        values = x.float()
        count = x.numel() / x.shape[1] * processes()
        mean = _Summed.apply(values.sum(over)) / count
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over)) / count
        if self.running_mean is not None and self.running_var is not None:
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics towards those of a batch."""
        number: Any = self.num_batches_tracked
        number.add_(1)
        share = 1.0 / float(number) if self.momentum is None else self.momentum
        running: Any = self.running_mean, self.running_var
        for old, new in zip(running, (mean, variance), strict=True):
            old.lerp_(new.to(old), share)


class _Shared1d(_SharedNorm, nn.BatchNorm1d): ...


class _Shared2d(_SharedNorm, nn.BatchNorm2d): ...


class _Shared3d(_SharedNorm, nn.BatchNorm3d): ...


_SHARED: dict[type[nn.Module], type[nn.Module]] = dict(zip(NORMS, (_Shared1d, _Shared2d, _Shared3d), strict=True))


class _Summed(torch.autograd.Function):
    """The sum over all processes, through which the loss of each reaches the samples of all."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return summed(tensor.clone())

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0].clone())
