"""What the processes of a run share: which samples of a batch are whose, draws, sums and means over all of them.

Sample ``i`` of the whole batch belongs to process ``i % processes()``, which is how the samplers of
:mod:`ldm.data.datamodule` deal it out. Everything here is the identity in a run of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Returns the number of processes of the run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


def own(whole: Any) -> Any:
    """Returns this process' part of a tensor ``[B, ...]`` or list with an entry for each sample of the whole batch."""
    return whole[rank() :: processes()]


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Returns standard normal numbers ``[n, ...]`` for this process' n samples of a batch.

    Each sample has a seed of its own, so that it gets the same numbers however the batch is spread over processes, and
    no process draws those of the others.

    Args:
        shape: n is equal on all processes.
        generator: a CPU generator in the same state on all processes, which draws the seeds.
    """
    seeds = own(torch.randint(1 << 62, (shape[0] * processes(),), generator=generator))
    drawn = [torch.randn(*shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(drawn)


def rand(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Returns uniform numbers ``[n, ...]`` in [0, 1) for this process' samples of a batch; for small shapes.

    All processes draw the numbers of the whole batch; see :func:`randn` for the arguments.
    """
    return own(torch.rand(shape[0] * processes(), *shape[1:], generator=generator))


def summed(tensor: Tensor) -> Tensor:
    """Returns the sum over all processes, computed in place where the tensor lies on their device."""
    if processes() > 1:
        tensor = _where_processes_meet(tensor)
        distributed.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """Returns the mean over all processes, without a gradient."""
    return tensor if processes() == 1 else summed(tensor.detach().clone()) / processes()


def means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the means of single numbers over all processes, which exchange them at once."""
    if processes() == 1 or not values:
        return dict(values)
    together = mean(torch.stack([value.detach().float().reshape(()) for value in values.values()]))
    return dict(zip(values, together.unbind(), strict=True))


def counted(n: int) -> int:
    """Returns the weight of n samples of this process in a mean that Lightning takes over all processes.

    Lightning averages the weights of processes in whole numbers. As multiples of the number of processes, none of them
    is rounded.
    """
    return n * processes()


def gathered(part: Tensor) -> Tensor:
    """Returns the whole batch ``[B, ...]`` of parts ``[n, ...]`` of equal size, with a gradient to each part."""
    return part if processes() == 1 else _Gathered.apply(part)


def gathered_items(part: Sequence[Any]) -> list[Any]:
    """Returns the whole batch of parts, whose sizes may differ by one."""
    if processes() == 1:
        return list(part)
    parts: list[Any] = [None] * processes()
    distributed.all_gather_object(parts, list(part))
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(processes())]
        distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return own(summed(gradients[0].contiguous()))


def _where_processes_meet(tensor: Tensor) -> Tensor:
    """Returns a tensor on the device of the processes' exchange: GPUs do not exchange what lies in RAM."""
    on_gpus = not tensor.is_cuda and distributed.get_backend() == "nccl"
    return tensor.cuda() if on_gpus else tensor
