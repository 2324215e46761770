"""Metrics of sets of pictures, one function for each, computed from features.

Features are ``[n, D]`` on the CPU, with a row for each picture. They may lie in a memory-mapped file: they are read in
blocks, and the matrix of all pairs is never held in memory. All sums are float64. A metric of ``first`` and ``second``
is symmetric; a metric of ``real`` and ``generated`` is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

BLOCK = 2048  # rows in a block: the distances of two blocks take 34 MB
SAME = 1e-12  # relative squared distance below which two rows count as equal and differ by rounding alone
SUBSETS, SPLITS = 100, 10  # the usual numbers for the kernel distance and the inception score
K_PRECISION, K_DENSITY = 3, 5  # the neighbour that gives a radius: Kynkaanniemi et al. 2019, Naeem et al. 2020
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # Jayasumana et al. 2024, section 4


class Draw(Protocol):
    """A source of random numbers: numpy's ``Generator``, or its older ``RandomState``."""

    def choice(self, a: int, size: int, replace: bool) -> np.ndarray:
        """Returns random numbers below ``a``, ``[size] int64``."""

    def permutation(self, x: int) -> np.ndarray:
        """Returns the numbers below ``x`` in a random order, ``[x] int64``."""


class Spread(NamedTuple):
    """Mean and standard deviation of a metric over parts of the pictures."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """The shares of generated pictures that look real, and of real pictures that the generator covers."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How densely generated pictures surround real ones, and the share of real ones with a generated one nearby.

    The density of two equal distributions is 1 on average.
    """

    density: float
    coverage: float


class Moments:
    """Number, mean and covariance of vectors, accumulated over batches in float64.

    Attributes:
        count: number of vectors.
        mean: mean vector, ``[D]``.
        scatter: sum of the outer products of deviations from the mean, ``[D, D]``.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(0), torch.zeros(0)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Returns the moments of the rows of ``[n, D]``."""
        moments = cls()
        for block in features.split(BLOCK):
            moments.add(block)
        return moments

    def add(self, features: Tensor) -> None:
        """Adds vectors ``[B, D]`` by the method of Chan et al. 1983, which subtracts no large sums."""
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
        """The sample covariance ``[D, D]``, divided by ``count - 1``."""
        return self.scatter / max(self.count - 1, 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Returns the Frechet distance of two normal distributions; with Inception's features, this is FID.

    Heusel et al. 2017, section 3: ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``; the trace of the root comes from the
    eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which are real.

    Raises:
        ValueError: a set has fewer than two vectors.
    """
    if min(first.count, second.count) < 2:
        raise ValueError(f"got {first.count} and {second.count} vectors, expected at least 2 of each for a distance")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * shared
    return float((first.mean - second.mean).square().sum() + spread)


def kernel_distance(first: Tensor, second: Tensor, draw: Draw, *, subsets: int = SUBSETS, size: int = 1000) -> Spread:
    """Returns the squared maximum mean discrepancy with a cubic kernel; with Inception's features, this is KID.

    The kernel is ``(x y / D + 1)^3``. The estimate is unbiased and may be negative (Binkowski et al. 2018, section 4).

    Args:
        first: ``[n, D]``.
        second: ``[m, D]``.
        draw: draws the subsets.
        subsets: number of subsets that mean and standard deviation are taken over.
        size: rows of each set in a subset.

    Raises:
        ValueError: a set has fewer rows than ``size``, or ``size`` is below 2.
    """
    fewest = min(len(first), len(second))
    if not 2 <= size <= fewest:
        raise ValueError(f"got subsets of {size} pictures, expected 2 to {fewest}, the pictures of the smaller set")
    distances = []
    for _ in tqdm(range(subsets), desc="kernel distance", unit="subset", disable=size < BLOCK // 4):
        x, y = (rows[torch.from_numpy(draw.choice(len(rows), size, False))].double() for rows in (first, second))
        xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        distances.append(float(within - 2 * xy.mean()))
    return Spread(float(np.mean(distances)), float(np.std(distances)))


def inception_score(logits: Tensor, draw: Draw, *, splits: int = SPLITS) -> Spread:
    """Returns the inception score (Salimans et al. 2016, section 4).

    It is the exponential of the mean divergence of a picture's class probabilities from their mean over all pictures.

    Args:
        logits: ``[n, classes]`` of a classifier; those of Inception usually leave out its bias.
        draw: shuffles the pictures.
        splits: number of parts that mean and standard deviation are taken over.

    Raises:
        ValueError: there are fewer pictures than parts.
    """
    n = len(logits)
    if n < splits:
        raise ValueError(f"got {n} pictures, expected at least {splits}, the parts of an inception score")
    order, scores = torch.from_numpy(draw.permutation(n)), []
    for part in range(splits):
        logs = logits[order[part * n // splits : (part + 1) * n // splits]].double().log_softmax(1)
        share = logs.exp().mean(0).log()
        scores.append(float((logs.exp() * (logs - share)).sum(1).mean().exp()))
    return Spread(float(np.mean(scores)), float(np.std(scores)))


def precision_recall(
    real: Tensor, generated: Tensor, *, k: int = K_PRECISION, device: torch.device | str = "cpu"
) -> PrecisionRecall:
    """Returns precision and recall (Kynkaanniemi et al. 2019, section 2, equation 1).

    Precision is the share of generated pictures in a ball around a real one. Recall is the share of real pictures in a
    ball around a generated one. A ball reaches to the k-th nearest other picture of its own set, and its surface
    belongs to it.

    Args:
        real: ``[n, D]``.
        generated: ``[m, D]``.
        k: number of the neighbour that gives the radius.
        device: where distances are computed.

    Raises:
        ValueError: a set has at most k pictures.
    """
    around_real, around_generated = _radii(real, k, device), _radii(generated, k, device)
    precise, recalled = torch.zeros(len(generated), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for rows, columns, squares in _squares(real, generated, device, "precision and recall"):
        precise[columns] |= (squares <= around_real[rows, None].to(device)).any(0).cpu()
        recalled[rows] |= (squares <= around_generated[None, columns].to(device)).any(1).cpu()
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def density_coverage(
    real: Tensor, generated: Tensor, *, k: int = K_DENSITY, device: torch.device | str = "cpu"
) -> DensityCoverage:
    """Returns density and coverage (Naeem et al. 2020, section 3, equations 4 and 5).

    Density is the mean number of balls around real pictures that a generated picture lies in, divided by k. Coverage is
    the share of these balls that contain a generated picture. Balls are those of :func:`precision_recall`. The authors'
    code leaves their surface out, which makes a difference only for pictures with exact copies.

    Args:
        real: ``[n, D]``.
        generated: ``[m, D]``.
        k: number of the neighbour that gives the radius.
        device: where distances are computed.

    Raises:
        ValueError: there are at most k real pictures.
    """
    around, inside = _radii(real, k, device), 0
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, _, squares in _squares(real, generated, device, "density and coverage"):
        within = squares <= around[rows, None].to(device)
        inside += int(within.sum())
        covered[rows] |= within.any(1).cpu()
    return DensityCoverage(inside / (k * len(generated)), float(covered.double().mean()))


def cmmd(first: Tensor, second: Tensor, *, device: torch.device | str = "cpu") -> float:
    """Returns CMMD (Jayasumana et al. 2024, section 4).

    It is the squared maximum mean discrepancy of CLIP vectors with a Gaussian kernel, times 1000. As in the authors'
    code, vectors have length one, sigma is 10, and the biased estimate keeps the diagonal, so it is never negative.

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

    Some implementations multiply the cosine by 100 or 2.5, or cut it off at 0; this one does not.
    """
    return F.cosine_similarity(images.double(), texts.double(), dim=1)


def _radii(features: Tensor, k: int, device: torch.device | str) -> Tensor:
    """Returns the squared distance ``[n]`` of each row of ``[n, D]`` to its k-th nearest other row."""
    if not 1 <= k < len(features):
        raise ValueError(f"got {len(features)} pictures, expected more than k={k}, the neighbour that gives a radius")
    nearest = torch.full((len(features), k + 1), torch.inf, dtype=torch.float64)
    for rows, _, squares in _squares(features, features, device, "radii"):
        every = torch.cat([nearest[rows].to(device), squares], 1)
        nearest[rows] = every.topk(k + 1, largest=False).values.cpu()  # the row itself, at distance 0, is one of them
    return nearest.amax(1)


def _squares(
    first: Tensor, second: Tensor, device: torch.device | str, what: str, *, unit: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields the squared distances of all pairs, block by block.

    Args:
        first: ``[n, D]``.
        second: ``[m, D]``.
        device: where distances are computed.
        what: label of the progress bar.
        unit: whether rows are scaled to length one.

    Yields:
        the rows of ``first``, the rows of ``second``, and their distances ``[b, c] float64``.
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
