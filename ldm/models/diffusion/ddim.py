"""DDIM sampling with the arguments of CompVis' ``DDIMSampler``, by :mod:`ldm.models.diffusion.samplers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.condition import Condition, Hybrid
from ldm.models.diffusion.editing import put_back
from ldm.models.diffusion.pixel import DDPM
from ldm.models.diffusion.samplers import SAMPLERS
from ldm.models.diffusion.stepping import Noise, Step


def as_condition(given: Any) -> Condition:
    """Returns the condition for CompVis' forms: a tensor, a list of tensors, or a mapping from kinds to lists."""
    if given is None or isinstance(given, Tensor):
        return given
    if not isinstance(given, Mapping):
        return given[0] if len(given) == 1 else torch.cat(list(given), dim=1)
    image, tokens = as_condition(given.get("c_concat")), as_condition(given.get("c_crossattn"))
    if isinstance(image, Tensor) and isinstance(tokens, Tensor):
        return Hybrid(image, tokens)
    return tokens if image is None else image


class DDIMSampler:
    """Samples latents of a model. The number of steps is always exactly ``S``, see ``NoiseSchedule.timesteps``."""

    name = "ddim"

    def __init__(self, model: DDPM, schedule: str = "linear") -> None:  # noqa: ARG002 (CompVis does not read it either)
        self.model = model

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        callback: Callable[[int], Any] | None = None,
        img_callback: Callable[[Tensor, int], Any] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        verbose: bool = True,  # noqa: ARG002 (nothing is printed)
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        *,
        noise: Noise = torch.randn_like,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Returns latents ``[B, C, h, w]``, and lists of intermediate x and estimates of x0.

        Args:
            S: number of steps.
            batch_size: B.
            shape: ``(C, h, w)``.
            conditioning: the condition, in any of the forms of :func:`as_condition`.
            callback: called with the number of every step.
            img_callback: called with every estimate of x0 and the step's number.
            quantize_x0: replace every estimate of x0 by the nearest codes of the first stage.
            eta: amount of new noise in each step.
            mask: ``[B, 1, h, w]``, 1 where ``x0`` is kept.
            x0: the latent for the part that is kept.
            temperature: factor of the new noise.
            noise_dropout: dropout rate of the new noise.
            verbose: has no effect.
            x_T: initial noise.
            log_every_t: number of steps between the returned intermediate results.
            unconditional_guidance_scale: scale of classifier-free guidance; 1 for none.
            unconditional_conditioning: the null condition, for guidance.
            noise: a function from a tensor to standard normal noise of its shape.
        """
        model, schedule = self.model, self.model.schedule
        steps: dict[str, list[Tensor]] = {"x_inter": [], "pred_x0": []}

        def keep_known(x: Tensor, t: int | None) -> Tensor:
            return x if mask is None or x0 is None or t is None else put_back(x, x0, mask, schedule, t, noise)

        def observe(step: Step) -> Tensor:
            x, believed = step.x, step.x0
            if quantize_x0:
                codes = self._on_codes(believed)
                x = x + math.sqrt(schedule.alphas_cumprod[step.t_next or 0]) * (codes - believed)
                believed = codes
            if callback is not None:
                callback(step.index)
            if img_callback is not None:
                img_callback(believed, step.index)
            if step.index == 0 or (S - step.index - 1) % log_every_t == 0:
                steps["x_inter"].append(x)
                steps["pred_x0"].append(believed)
            return keep_known(x, step.t_next)

        null = as_condition(unconditional_conditioning)
        scale = 1.0 if null is None else float(unconditional_guidance_scale)
        denoise = model.denoiser(as_condition(conditioning), null, scale)
        x = torch.randn(batch_size, *shape, device=model.device) if x_T is None else x_T
        for kept in steps.values():
            kept.append(x)
        start = keep_known(x, int(schedule.timesteps(S)[-1]))
        fresh = _scaled(noise, temperature, noise_dropout)
        latent = SAMPLERS[self.name](denoise, start, schedule, S, eta=eta, noise=fresh, on_step=observe)
        return latent, steps

    def _on_codes(self, latent: Tensor) -> Tensor:
        model: Any = self.model
        return model.scale_factor * model.first_stage_model.nearest_codes(latent / model.scale_factor)[0]


def _scaled(noise: Noise, temperature: float, dropout: float) -> Noise:
    return lambda x: F.dropout(temperature * noise(x), p=dropout)
