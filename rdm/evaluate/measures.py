"""The measures of a report: what each one needs, how it is computed, and how the protocol describes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from rdm.evaluate.extract import BATCH, Extracted
from rdm.evaluate.features import FeatureNetwork, device
from rdm.evaluate.metrics import (
    CMMD_SCALE,
    CMMD_SIGMA,
    K_DENSITY,
    K_PRECISION,
    SPLITS,
    SUBSETS,
    Moments,
    clip_score,
    cmmd,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

LOG = logging.getLogger(__name__)
SEED = 0  # seed of the random subsets and splits
SUBSET = 1000  # pictures in a subset of the kernel distance, if both sets have at least twice as many


@dataclass(frozen=True)
class FeatureSets:
    """The features of the evaluated pictures and of the reference by one network.

    Attributes:
        network: the network.
        pictures: features of the evaluated pictures.
        reference: features of the reference pictures, if there are any.
        captions: captions of the evaluated pictures.
        subset: pictures in a subset of the kernel distance; None derives it from the sets.
    """

    network: FeatureNetwork
    pictures: Extracted
    reference: Extracted | None
    captions: Sequence[str]
    subset: int | None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """The features of the reference and of the pictures; only measures that need a reference read it."""
        return cast(Extracted, self.reference).features, self.pictures.features

    @property
    def subset_size(self) -> int:
        """The pictures in a subset: at most half of the smaller set, so that subsets differ."""
        return self.subset or min(SUBSET, max(2, min(map(len, self.both)) // 2))


@dataclass(frozen=True)
class Measure:
    """One metric of a report.

    Attributes:
        words: how it is computed, for the protocol.
        run: computes its figures.
        needs: the inputs that it requires: ``reference``, ``captions``, ``logits`` or ``texts``.
    """

    words: str
    run: Callable[[FeatureSets], Mapping[str, Any]]
    needs: tuple[str, ...] = ("reference",)


def _frechet(sets: FeatureSets) -> dict[str, Any]:
    reference, pictures = (Moments.of(features) for features in sets.both)
    fewest, width = min(reference.count, pictures.count), len(reference.mean)
    if fewest <= width:
        LOG.warning("%d pictures for features of width %d: the Frechet distance has little meaning", fewest, width)
    return {"frechet_distance": frechet_distance(reference, pictures)}


def _kernel(sets: FeatureSets) -> dict[str, Any]:
    distance = kernel_distance(*sets.both, np.random.default_rng(SEED), size=sets.subset_size)
    return {"kernel_distance": {**distance._asdict(), "subset": sets.subset_size}}


def _inception(sets: FeatureSets) -> dict[str, Any]:
    logits = cast(Tensor, sets.pictures.logits)
    return {"inception_score": inception_score(logits, np.random.default_rng(SEED))._asdict()}


def _precision(sets: FeatureSets) -> dict[str, Any]:
    reference, pictures = sets.both
    if len(reference) != len(pictures):
        LOG.warning(
            "%d pictures against %d of the reference: precision and recall depend on both numbers; compare them only "
            "with figures of the same numbers, see --n and --reference_n",
            len(pictures),
            len(reference),
        )
    return precision_recall(reference, pictures, device=device())._asdict()


def _clip(sets: FeatureSets) -> dict[str, Any]:
    texts, total = cast(Callable[[Sequence[str]], Tensor], sets.network.texts), 0.0
    for start in range(0, len(sets.captions), 8 * BATCH):
        part = slice(start, start + 8 * BATCH)
        try:
            vectors = texts(sets.captions[part]).cpu()
        except ValueError as error:
            raise ValueError(f"clip_score: {error}, or leave it out of --metrics") from error
        total += float(clip_score(sets.pictures.features[part], vectors).sum())
    return {"clip_score": total / len(sets.captions)}


MEASURES = {
    "frechet_distance": Measure(
        "of normal distributions, divided by n - 1; FID where features are inception", _frechet
    ),
    "kernel_distance": Measure(
        f"(x y / D + 1)^3, unbiased, {SUBSETS} subsets drawn with seed {SEED}; KID where features are inception",
        _kernel,
    ),
    "inception_score": Measure(f"{SPLITS} splits in an order of seed {SEED}", _inception, ("logits",)),
    "precision_recall": Measure(f"Kynkaanniemi et al. 2019, k {K_PRECISION}, all pictures", _precision),
    "density_coverage": Measure(
        f"Naeem et al. 2020, k {K_DENSITY}, surfaces included",
        lambda sets: density_coverage(*sets.both, device=device())._asdict(),
    ),
    "cmmd": Measure(
        f"Jayasumana et al. 2024: unit vectors, Gaussian of sigma {CMMD_SIGMA:g}, biased, times {CMMD_SCALE:g}; theirs "
        "is of ViT-L-14-336-quickgelu:openai",
        lambda sets: {"cmmd": cmmd(*sets.both, device=device())},
        ("reference", "texts"),
    ),
    "clip_score": Measure("mean cosine of pictures and captions", _clip, ("captions", "texts")),
}
