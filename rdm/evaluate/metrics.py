"""Figures of sets of pictures from their features, one function per metric.

Features are ``[n, D]``, a row for each picture, on the CPU, and may lie in a memory-mapped file: they are read in
blocks, and a matrix of all pairs is never held. All sums are float64. ``first`` and ``second`` may change places; where
it says ``real`` and ``made``, they may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

BLOCK = 2048  # rows at once: a tile of pairs takes 34 MB
SAME = 1e-12  # squared distance, in parts of the squared lengths, below which two rows are one picture, twice rounded
SUBSETS, SPLITS = 100, 10  # of the kernel distance and of the inception score, as everyone takes them
K_PRECISION, K_DENSITY = 3, 5  # neighbours that give a radius: Kynkaanniemi et al. 2019, Naeem et al. 2020
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al. 2024, section 4


class Draw(Protocol):
    """Where random rows come from: numpy's ``Generator``, or its older ``RandomState``."""

    def choice(self, a: int, size: int, replace: bool) -> np.ndarray:
        """Returns numbers below ``a``, ``[size] int64``."""

    def permutation(self, x: int) -> np.ndarray:
        """Returns the numbers below ``x`` in some order, ``[x] int64``."""


class Spread(NamedTuple):
    """Mean and standard deviation of a figure over parts of the pictures."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """How many made pictures look real, and how many of the real ones could have been made; fractions."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How thickly made pictures lie among the real ones, 1 where both are alike, and how many of these are met."""

    density: float
    coverage: float


class Moments:
    """Number, mean and covariance of vectors that come in batches, in float64.

    Attributes:
        count: of vectors so far.
        mean: ``[D]``.
        scatter: sum of the outer products of deviations from the mean, ``[D, D]``.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(0), torch.zeros(0)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Returns those of the rows of ``[n, D]``."""
        moments = cls()
        for block in features.split(BLOCK):
            moments.add(block)
        return moments

    def add(self, features: Tensor) -> None:
        """Adds vectors ``[B, D]`` (Chan et al. 1983: no large sums are subtracted)."""
        batch = features.detach().double().cpu()
        mean = batch.mean(0)
        scatter = (batch - mean).T @ (batch - mean)
        if not self.count:
            self.count, self.mean, self.scatter = len(batch), mean, scatter
            return
        total, step = self.count + len(batch), mean - self.mean
        self.scatter += scatter + torch.outer(step, step) * (self.count * len(batch) / total)
        self.mean, self.count = self.mean + step * (len(batch) / total), total

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``, of a sample (divided by the count less 1)."""
        return self.scatter / max(self.count - 1, 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Returns the Frechet distance of two normal distributions; of Inception's features, FID.

    Heusel et al. 2017, section 3: ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``; the trace of the root comes from the
    eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which are real.

    Raises:
        ValueError: fewer than two vectors.
    """
    if min(first.count, second.count) < 2:
        raise ValueError(f"got {first.count} and {second.count} vectors, expected at least 2 of each for a distance")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * shared
    return float((first.mean - second.mean).square().sum() + spread)


def kernel_distance(first: Tensor, second: Tensor, draw: Draw, *, subsets: int = SUBSETS, size: int = 1000) -> Spread:
    """Returns the squared maximum mean discrepancy by a cubic kernel; KID, of Inception's features.

    The kernel is ``(x y / D + 1)^3``, the estimate unbiased, so it may fall below 0 (Binkowski et al. 2018, section 4).

    Args:
        first: ``[n, D]``.
        second: ``[m, D]``.
        draw: draws the subsets.
        subsets: mean and standard deviation are over so many.
        size: rows of each set in a subset.

    Raises:
        ValueError: fewer rows than ``size``, or a size below 2.
    """
    fewest = min(len(first), len(second))
    if not 2 <= size <= fewest:
        raise ValueError(f"got subsets of {size} pictures, expected 2 to {fewest}, the pictures of the smaller set")
    found = []
    for _ in tqdm(range(subsets), desc="kernel distance", unit="subset", disable=size < BLOCK // 4):
        x, y = (rows[torch.from_numpy(draw.choice(len(rows), size, False))].double() for rows in (first, second))
        xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        found.append(float(within - 2 * xy.mean()))
    return Spread(float(np.mean(found)), float(np.std(found)))


def inception_score(logits: Tensor, draw: Draw, *, splits: int = SPLITS) -> Spread:
    """Returns the exponential of the mean divergence of a picture's classes from those of all.

    Salimans et al. 2016, section 4.

    Args:
        logits: ``[n, classes]`` of a classifier; of Inception, without its bias, as everyone does since.
        draw: puts pictures in a random order.
        splits: mean and standard deviation are over so many parts.

    Raises:
        ValueError: fewer pictures than parts.
    """
    n = len(logits)
    if n < splits:
        raise ValueError(f"got {n} pictures, expected at least {splits}, the parts of an inception score")
    order, found = torch.from_numpy(draw.permutation(n)), []
    for part in range(splits):
        logs = logits[order[part * n // splits : (part + 1) * n // splits]].double().log_softmax(1)
        share = logs.exp().mean(0).log()
        found.append(float((logs.exp() * (logs - share)).sum(1).mean().exp()))
    return Spread(float(np.mean(found)), float(np.std(found)))


def precision_recall(
    real: Tensor, made: Tensor, *, k: int = K_PRECISION, device: torch.device | str = "cpu"
) -> PrecisionRecall:
    """Returns the shares of made pictures within balls of real ones, and of real within balls of made ones.

    A ball reaches to the k-th nearest other picture of its own set and includes its surface (Kynkaanniemi et al. 2019,
    section 2, equation 1).

    Args:
        real: ``[n, D]``.
        made: ``[m, D]``.
        k: neighbour that gives the radius.
        device: where distances are computed.

    Raises:
        ValueError: k or fewer pictures.
    """
    around_real, around_made = _radii(real, k, device), _radii(made, k, device)
    precise, recalled = torch.zeros(len(made), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for rows, columns, squares in _squares(real, made, device, "precision and recall"):
        precise[columns] |= (squares <= around_real[rows, None].to(device)).any(0).cpu()
        recalled[rows] |= (squares <= around_made[None, columns].to(device)).any(1).cpu()
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def density_coverage(
    real: Tensor, made: Tensor, *, k: int = K_DENSITY, device: torch.device | str = "cpu"
) -> DensityCoverage:
    """Returns the number of real balls that a made picture is in, over k, and the share of balls with one in them.

    Naeem et al. 2020, section 3, equations 4 and 5, with balls as in :func:`precision_recall`: their code leaves the
    surface out, which differs only where pictures have exact copies.

    Args:
        real: ``[n, D]``.
        made: ``[m, D]``.
        k: neighbour that gives the radius.
        device: where distances are computed.

    Raises:
        ValueError: k or fewer real pictures, or none made.
    """
    around, inside = _radii(real, k, device), 0
    met = torch.zeros(len(real), dtype=torch.bool)
    for rows, _, squares in _squares(real, made, device, "density and coverage"):
        within = squares <= around[rows, None].to(device)
        inside += int(within.sum())
        met[rows] |= within.any(1).cpu()
    return DensityCoverage(inside / (k * len(made)), float(met.double().mean()))


def cmmd(first: Tensor, second: Tensor, *, device: torch.device | str = "cpu") -> float:
    """Returns the squared maximum mean discrepancy of CLIP vectors by a Gaussian kernel, times 1000.

    Jayasumana et al. 2024, section 4, as their code has it: vectors of length one, sigma 10, the estimate of least
    variance, which keeps the diagonal and is never negative.

    Args:
        first: ``[n, D]`` of any length.
        second: ``[m, D]``.
        device: where distances are computed.
    """

    def kernel(x: Tensor, y: Tensor) -> float:
        sums = [
            (squares / (-2 * CMMD_SIGMA**2)).exp().sum() for _, _, squares in _squares(x, y, device, "CMMD", unit=True)
        ]
        return float(torch.stack(sums).sum()) / (len(x) * len(y))

    return CMMD_SCALE * (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second))


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """Returns the cosine ``[n]`` of each picture's CLIP vector and its text's, both ``[n, D]`` (Hessel et al. 2021).

    Others scale it by 100 or 2.5, or cut it off at 0; this is the cosine.
    """
    return F.cosine_similarity(images.double(), texts.double(), dim=1)


def _radii(features: Tensor, k: int, device: torch.device | str) -> Tensor:
    """Returns the squared distance ``[n]`` of each row of ``[n, D]`` to its k-th nearest other row."""
    if not 1 <= k < len(features):
        raise ValueError(f"got {len(features)} pictures, expected more than k={k}, the neighbour that gives a radius")
    nearest = torch.full((len(features), k + 1), torch.inf, dtype=torch.float64)
    for rows, _, squares in _squares(features, features, device, "radii"):
        every = torch.cat([nearest[rows].to(device), squares], 1)
        nearest[rows] = every.topk(k + 1, largest=False).values.cpu()  # itself, at 0, is one of them
    return nearest.amax(1)


def _squares(
    first: Tensor, second: Tensor, device: torch.device | str, what: str, *, unit: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields squared distances of all pairs in tiles: rows of ``first``, rows of ``second``, ``[b, c] float64``.

    Args:
        first: ``[n, D]``.
        second: ``[m, D]``.
        device: where distances are computed.
        what: names the progress bar.
        unit: scale rows to length one.
    """

    def blocks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(features), BLOCK):
            part = features[start : start + BLOCK].to(device).double()
            yield slice(start, start + len(part)), F.normalize(part, dim=1) if unit else part

    total = -(-len(first) // BLOCK)
    for rows, x in tqdm(blocks(first), desc=what, total=total, unit="block", disable=total < 4):
        for columns, y in blocks(second):
            lengths = x.square().sum(1)[:, None] + y.square().sum(1)[None]
            squares = lengths - 2 * (x @ y.T)
            yield rows, columns, squares.where(squares > SAME * lengths, 0.0)
