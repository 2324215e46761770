"""The figures of other programs: torch-fidelity, torchmetrics, and the published definitions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_fidelity
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from benchmarks.agreement.networks import Network
from benchmarks.agreement.pair import Pair
from rdm.evaluate.measures import K_DENSITY, K_PRECISION, SPLITS
from rdm.evaluate.metrics import CMMD_SCALE, CMMD_SIGMA

FIDELITY = {  # our names -> torch-fidelity's names
    "frechet_distance": "frechet_inception_distance",
    "kernel_distance mean": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
    "inception_score mean": "inception_score_mean",
    "inception_score std": "inception_score_std",
}


class Figure(NamedTuple):
    """A figure of another program.

    Attributes:
        metric: our name of the figure.
        whose: the program.
        value: its value.
    """

    metric: str
    whose: str
    value: float


class Given(nn.Module):
    """A network for torchmetrics that returns its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Returns the input."""
        return features


def figures(pair: Pair, network: Network) -> list[Figure]:
    """Returns all figures that other programs offer for a pair in the features of a network.

    torch-fidelity reads the folders and computes the features, from which the other figures are computed too.
    """
    values, real, made = fidelity(pair, network)
    every = [Figure(name, "torch-fidelity", values[key]) for name, key in FIDELITY.items() if key in values]
    every += torchmetrics(real, made)
    every += [Figure(name, "definition", value) for name, value in definitions(real.numpy(), made.numpy())]
    return every


def fidelity(pair: Pair, network: Network) -> tuple[dict[str, float], Tensor, Tensor]:
    """Returns torch-fidelity's figures, and the features ``[n, D]`` of the reference and of the evaluated pictures.

    The only subset of the kernel distance has all pictures, so nothing is random. The evaluated pictures are read in
    the order in which the script splits them, see :class:`benchmarks.agreement.pair.Pair`; only the splits depend on
    it.
    """
    seen: list[Tensor] = []
    options: dict[str, Any] = {
        **{"isc": network.classifies, "fid": True, "kid": True, "prc": True},
        **{"isc_splits": SPLITS, "samples_shuffle": False, "prc_neighborhood": K_PRECISION},
        **{"kid_subsets": 1, "kid_subset_size": pair.n, "kid_kernel": "poly", "kid_kernel_poly_degree": 3},
        **{"kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0},  # gamma is then one over the width
        **{"cache": False, "save_cpu_ram": True, "cuda": False, "verbose": False},
    }
    name = f"agreement, {network.words}, {id(seen)}"
    torch_fidelity.register_feature_extractor(name, keeping(network.extractor, network.features, seen))
    values = torch_fidelity.calculate_metrics(
        input1=str(pair.ordered), input2=str(pair.real), feature_extractor=name, **options, **network.options
    )
    made, real = torch.cat(seen).split(pair.n)
    return values, real, made


def keeping(extractor: type[FeatureExtractorBase], layer: str, seen: list[Tensor]) -> type[FeatureExtractorBase]:
    """Returns a subclass of an extractor of torch-fidelity that also appends the features of a layer to a list.

    It returns them in float64, because the other programs compute sums in the dtype of the features. In float32, the
    fourth digit of a kernel distance would be a rounding error.
    """

    class Keeping(extractor):
        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            outputs = dict(zip(self.features_list, super().forward(pixels), strict=True))
            outputs[layer] = outputs[layer].double()
            seen.append(outputs[layer])
            return tuple(outputs.values())

    return Keeping


def torchmetrics(real: Tensor, made: Tensor) -> list[Figure]:
    """Returns the figures of torchmetrics for features ``[n, D]`` of the reference and of the evaluated pictures."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `")  # it warns of its memory
        distance = FrechetInceptionDistance(Given(real.shape[1]))
        kernel = KernelInceptionDistance(Given(real.shape[1]), subsets=1, subset_size=len(real))
    for metric in (distance, kernel):
        metric.update(real, real=True)
        metric.update(made, real=False)
    return [
        Figure("frechet_distance", "torchmetrics", float(distance.compute())),
        Figure("kernel_distance mean", "torchmetrics", float(kernel.compute()[0])),
    ]


def definitions(real: np.ndarray, made: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yields density and coverage (Naeem et al. 2020, without surfaces, as in their code) and CMMD.

    Args:
        real: features of the reference, ``[n, D] float64``.
        made: features of the evaluated pictures, ``[n, D] float64``.
    """
    within = np.sort(distances(real, real), axis=1)[:, K_DENSITY]  # place 0 is the row itself
    between = distances(real, made)
    yield "density", float((between < within[:, None]).sum(0).mean() / K_DENSITY)
    yield "coverage", float((between.min(1) < within).mean())
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (real, made))
    xx, yy, xy = (np.exp(-(distances(a, b) ** 2) / (2 * CMMD_SIGMA**2)).mean() for a, b in ((x, x), (y, y), (x, y)))
    yield "cmmd", float(CMMD_SCALE * (xx + yy - 2 * xy))


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the distances ``[n, m]`` between rows ``[n, D]`` and ``[m, D]``."""
    return np.stack([np.linalg.norm(second - row, axis=1) for row in first])
