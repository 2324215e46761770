"""Autoregressive sampling: pure functions from a predictor of the next code to sequences of codes.

``B`` batch, ``V`` number of different codes. The predictor holds the conditioning and the guidance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.models.diffusion.stepping import Watch

Predictor = Callable[[Tensor], Tensor]
"""Maps the next codes [B, n] of sequences to logits [B, V] of the code after them. It remembers earlier codes."""

Noise = Callable[[Tensor], Tensor]
"""Returns new Gumbel noise of the shape of its argument, the logits [B, V] of the next code."""

OnToken = Callable[[Tensor], None]
"""Called after each code with all tokens so far [B, n], of which the first one is the start token."""


def seeded_gumbel(seeds: Sequence[int]) -> Noise:
    """Returns a source of noise; that of an image depends on its seed alone, not on the batch or the device."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def noise(logits: Tensor) -> Tensor:
        drawn = [torch.empty(logits.shape[1]).exponential_(generator=generator) for generator in generators]
        return -torch.stack(drawn).log().to(logits)

    return noise


def check_choice(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Checks the options of :func:`choose`.

    Raises:
        ValueError: an option is out of range.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature: got {temperature}, expected 0 (always the likeliest code) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, expected a share above 0 and up to 1")


@torch.no_grad()
def autoregress(
    predict: Predictor,
    start: Tensor,
    length: int,
    noise: Noise,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    on_token: OnToken | None = None,
) -> Tensor:
    """Returns the codes that follow the given ones, ``[B, length] int64``.

    Args:
        predict: the predictor.
        start: the first tokens of the sequences, ``[B, n] int64``, n at least 1.
        length: number of codes to sample, at least 1.
        noise: source of Gumbel noise.
        temperature: see :func:`choose`.
        top_k: see there.
        top_p: see there.
        on_token: observer, called after each code.
    """
    new, found = start, []
    for _ in range(length):
        new = choose(predict(new), noise, temperature=temperature, top_k=top_k, top_p=top_p)[:, None]
        found.append(new)
        if on_token is not None:
            on_token(torch.cat([start, *found], dim=1))
    return torch.cat(found, dim=1)


def watched(watch: Watch | None, show: Callable[[Tensor], Tensor], size: Sequence[int]) -> OnToken | None:
    """Returns the observer that tells a watcher of each code; None without a watcher.

    The preview is grey where codes are missing.

    Args:
        watch: the watcher.
        show: decodes codes ``[B, h w]`` to images ``[B, C, H, W]``.
        size: ``(h, w)``, the number of codes at the height and the width of an image.
    """
    if watch is None:
        return None
    length = math.prod(size)

    def tell(tokens: Tensor) -> None:
        codes = tokens[:, 1:]
        done = codes.shape[1]

        def preview() -> Tensor:
            images = show(torch.cat([codes, codes[:, -1:].expand(-1, length - done)], dim=1))
            known = (torch.arange(length) < done).view(1, 1, *size).float()
            known = torch.nn.functional.interpolate(known, images.shape[2:], mode="nearest")
            return images * known.to(images)

        watch(done, length, preview)

    return tell


def choose(
    logits: Tensor, noise: Noise, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Returns a code for each row of logits, ``[B] int64``, sampled from their softmax.

    The code is the argmax of the logits plus Gumbel noise (Maddison et al. 2014, arXiv 1411.0030, section 2). Rounding,
    which differs between batch sizes, changes this choice less often than one by cumulated probabilities.

    Args:
        logits: ``[B, V]``.
        noise: source of Gumbel noise.
        temperature: divisor of the logits; 0 takes the most probable code.
        top_k: sample from the k most probable codes only.
        top_p: after ``top_k``, sample from the smallest set of most probable codes whose total probability is at least
            this (nucleus sampling, Holtzman et al. 2020, section 3.1).
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    if top_k is not None or top_p is not None:
        falling, codes = scores.sort(descending=True, stable=True)
        if top_k is not None:
            falling[:, top_k:] = -torch.inf
        if top_p is not None:
            chances = falling.softmax(-1)
            falling = falling.where(chances.cumsum(-1) - chances < top_p, -torch.inf)
        scores = torch.empty_like(scores).scatter_(-1, codes, falling)
    return (scores + noise(scores)).argmax(-1)
