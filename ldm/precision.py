"""The fastest precision of a training on this machine."""

from __future__ import annotations

import torch

AUTO = "auto"


def fastest_precision(on_gpu: bool) -> str:
    """Returns ``bf16-mixed`` where the device computes in bfloat16, and ``32-true`` where it would only emulate it.

    Args:
        on_gpu: whether the training is on a GPU; otherwise on the CPU.
    """
    if on_gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"
