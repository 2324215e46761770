"""Learning-rate factors as functions of the step, with CompVis' names, and the schedule that applies them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import LambdaLR


class StepSchedule(LambdaLR):
    """Multiplies learning rates by a factor that depends on the step.

    Checkpoints hold only the step of its state. Learning rates and factor come from the config, so that a run can be
    resumed with others. torch's own class would continue with the old ones without a warning.
    """

    def state_dict(self) -> dict[str, Any]:
        """Returns the step."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the step of a checkpoint, at this schedule's rate instead of the one the optimizer stored."""
        self.last_epoch = state_dict["last_epoch"]
        rates = [rate * factor(self.last_epoch) for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class LambdaWarmUpCosineScheduler:
    """Linear warm-up from ``lr_start`` to ``lr_max``, then a cosine down to ``lr_min`` at ``max_decay_steps``.

    Args:
        warm_up_steps: number of steps of the warm-up.
        lr_min: factor from ``max_decay_steps`` on.
        lr_max: factor at the end of the warm-up.
        lr_start: factor of the first step.
        max_decay_steps: step at which the cosine ends, counted from the first step.
    """

    def __init__(self, warm_up_steps: int, lr_min: float, lr_max: float, lr_start: float, max_decay_steps: int) -> None:
        self.warm_up_steps, self.max_decay_steps = warm_up_steps, max_decay_steps
        self.lr_min, self.lr_max, self.lr_start = lr_min, lr_max, lr_start

    def schedule(self, step: int) -> float:
        """Returns the factor at step ``step``."""
        if step < self.warm_up_steps:
            return self.lr_start + (self.lr_max - self.lr_start) * step / self.warm_up_steps
        done = min(1.0, (step - self.warm_up_steps) / (self.max_decay_steps - self.warm_up_steps))
        return self.lr_min + 0.5 * (self.lr_max - self.lr_min) * (1 + math.cos(math.pi * done))

    __call__ = schedule


class LambdaWarmUpCosineScheduler2:
    """Cycles of a linear warm-up from ``f_start`` to ``f_max`` and a cosine down to ``f_min``.

    Each list has one entry for each cycle.

    Args:
        warm_up_steps: number of steps of the warm-up.
        f_min: factor at the end of the cycle.
        f_max: factor at the end of the warm-up.
        f_start: factor of the cycle's first step.
        cycle_lengths: number of steps of the cycle. The last cycle keeps its ``f_min`` after its end.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
    ) -> None:
        lengths = {len(values) for values in (warm_up_steps, f_min, f_max, f_start, cycle_lengths)}
        if len(lengths) != 1:
            raise ValueError(f"got lists of lengths {sorted(lengths)}, expected one entry for each cycle in every list")
        self.warm_up_steps, self.cycle_lengths = list(warm_up_steps), list(cycle_lengths)
        self.f_min, self.f_max, self.f_start = list(f_min), list(f_max), list(f_start)

    def schedule(self, step: int) -> float:
        """Returns the factor at step ``step``; the last cycle also applies to all steps after its end."""
        cycle = 0
        while cycle < len(self.cycle_lengths) - 1 and step > self.cycle_lengths[cycle]:
            step -= self.cycle_lengths[cycle]
            cycle += 1
        warm_up = self.warm_up_steps[cycle]
        if step < warm_up:
            return self.f_start[cycle] + (self.f_max[cycle] - self.f_start[cycle]) * step / warm_up
        return self.decay(step, cycle)

    def decay(self, step: int, cycle: int) -> float:
        """Returns the factor after the warm-up, for a step within the cycle."""
        warm_up = self.warm_up_steps[cycle]
        done = min(1.0, (step - warm_up) / (self.cycle_lengths[cycle] - warm_up))
        return self.f_min[cycle] + 0.5 * (self.f_max[cycle] - self.f_min[cycle]) * (1 + math.cos(math.pi * done))

    __call__ = schedule


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """The same cycles with a linear decrease to ``f_min`` instead of a cosine, from the cycle's first step on."""

    def decay(self, step: int, cycle: int) -> float:
        """Returns the factor after the warm-up, for a step within the cycle."""
        left = (self.cycle_lengths[cycle] - step) / self.cycle_lengths[cycle]
        return self.f_min[cycle] + (self.f_max[cycle] - self.f_min[cycle]) * left
