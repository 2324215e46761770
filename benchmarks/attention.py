"""Compares attention as plain matrix products with torch's fused kernel, for several numbers of queries and keys.

The constant `PLAIN_SCORES` of `ldm.modules.attention` is the number of scores up to which the plain products are faster
on a CPU in bfloat16.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm.modules.attention import attend

SIZES = ((16, 4), (64, 4), (1024, 4), (16, 16), (64, 64), (128, 128), (256, 256), (512, 512), (1024, 77), (1024, 1024))
BATCH, HEADS, WIDTH = 2, 8, 32
ROUNDS, SECONDS = 9, 0.02


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Forces `attend` to use a kernel."""
    before = os.environ.get("LDM_ATTENTION", "")
    os.environ["LDM_ATTENTION"] = name
    try:
        yield
    finally:
        os.environ["LDM_ATTENTION"] = before


def duration(call: Callable[[], object], times: int) -> float:
    """Returns the mean seconds of a call over a number of calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def ratio(call: Callable[[], object]) -> float:
    """Returns the time of the fused kernel divided by that of the plain products, as medians of alternating rounds."""
    seconds: dict[str, list[float]] = {"sdpa": [], "plain": []}
    for name in seconds:
        with kernel(name):
            call()
    times = max(1, round(SECONDS / duration(call, 1)))
    for _ in range(ROUNDS):
        for name, measured in seconds.items():
            with kernel(name):
                measured.append(duration(call, times))
    return statistics.median(seconds["sdpa"]) / statistics.median(seconds["plain"])


def run() -> dict[str, float]:
    """Returns the ratios by queries x keys, dtype and pass; plain products are faster where a ratio is above 1."""
    generator = torch.Generator().manual_seed(0)
    ratios = {}
    for n, length in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (
                torch.randn(BATCH, size, HEADS, WIDTH, generator=generator).to(dtype).requires_grad_()
                for size in (n, length, length)
            )

            def forward(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
                with torch.no_grad():
                    attend(q, k, v)

            def both(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
                torch.autograd.grad(attend(q, k, v).sum(), (q, k, v))

            name = f"{n}x{length}_{str(dtype).removeprefix('torch.')}"
            ratios[f"{name}_forward"] = round(ratio(forward), 2)
            ratios[f"{name}_forward_backward"] = round(ratio(both), 2)
    return ratios
