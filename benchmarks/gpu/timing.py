"""The times, memory and operations of calls on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

GPU = "cuda"


@dataclass(frozen=True)
class Bench:
    """Where and how large things are measured.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: whether sizes are small, so that a CPU is done in seconds; such figures say only that everything runs.
        repeats: number of timed calls, of which the median is taken.
    """

    device: str
    tiny: bool
    repeats: int = 10

    @property
    def compiler(self) -> str:
        """The backend of ``torch.compile``; tiny sizes run without a compiler, which takes minutes."""
        return "eager" if self.tiny else "inductor"

    def seconds(self, call: Callable[[], Any], warm_up: int = 3) -> float:
        """Returns the median seconds of a call, after some that are not counted."""
        for _ in range(1 if self.tiny else warm_up):
            call()
        measured = []
        for _ in range(2 if self.tiny else self.repeats):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            measured.append(time.perf_counter() - start)
        return statistics.median(measured)

    def figures(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Returns the median milliseconds and the peak memory of a call."""
        return {"ms": round(1000 * self.seconds(call), 2), "peak_gb": self.peak_gb(call)}

    def wait(self) -> None:
        """Waits until the device has done everything."""
        if self.device == GPU:
            torch.cuda.synchronize()

    def peak_gb(self, call: Callable[[], Any]) -> float | None:
        """Returns the most memory of the device that a call has allocated in all, in GB; None on a CPU."""
        if self.device != GPU:
            return None
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def tflop(call: Callable[[], Any]) -> float:
    """Returns the operations of the products and convolutions of a call in TFLOP, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def attempt(call: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """Returns what a call with some arguments returns; if the device cannot do it, why, in one line."""
    try:
        return call(*given)
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"not": lines[0][:160]}
