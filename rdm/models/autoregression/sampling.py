"""Codes one after the other: pure functions from a predictor of the next code to sequences.

``B`` batch, ``V`` codes to choose from. What the predictor looks at, and guidance, are closed over before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]
"""Codes [B, n] that come next in their sequences -> logits [B, V] of the code after them. It remembers the earlier."""

Noise = Callable[[Tensor], Tensor]
"""Called with logits [B, V] for each code; returns fresh Gumbel noise of their shape."""


def seeded_gumbel(seeds: Sequence[int]) -> Noise:
    """Returns a source of noise, each image's from its own seed: whatever the batch, and whatever the device."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def noise(logits: Tensor) -> Tensor:
        drawn = [torch.empty(logits.shape[1]).exponential_(generator=generator) for generator in generators]
        return -torch.stack(drawn).log().to(logits)

    return noise


def check_choice(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Checks how codes are to be chosen, see :func:`choose`.

    Raises:
        ValueError: a number that chooses nothing.
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
) -> Tensor:
    """Returns the codes that follow, ``[B, length] int64``.

    Args:
        predict: the predictor.
        start: what the sequences begin with, ``[B, n] int64``, n at least 1.
        length: codes to choose, at least 1.
        noise: source of the randomness.
        temperature: see :func:`choose`, as the next two.
        top_k: see there.
        top_p: see there.
    """
    new, found = start, []
    for _ in range(length):
        new = choose(predict(new), noise, temperature=temperature, top_k=top_k, top_p=top_p)[:, None]
        found.append(new)
    return torch.cat(found, dim=1)


def choose(
    logits: Tensor, noise: Noise, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Returns a code for each row of logits, ``[B] int64``, drawn from their softmax.

    It is the largest of the logits plus Gumbel noise (Maddison et al. 2014, arXiv 1411.0030, section 2). Rounding,
    which differs between batch sizes, changes that choice less often than one by the cumulated chances.

    Args:
        logits: ``[B, V]``.
        noise: source of the randomness.
        temperature: logits are divided by it; 0 takes the likeliest code.
        top_k: of the k likeliest codes alone.
        top_p: of the fewest likeliest codes that have this share of the probability together (nucleus sampling,
            Holtzman et al. 2020, section 3.1), after ``top_k``.
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
