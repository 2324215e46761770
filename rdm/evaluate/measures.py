"""The kinds of figures that a report may hold: what each needs, how it is made, in code and in words."""

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
SEED = 0  # of subsets and splits
SUBSET = 1000  # pictures of a subset of the kernel distance, where there are twice as many


@dataclass(frozen=True)
class Seen:
    """What one network saw of all pictures.

    Attributes:
        network: the network.
        made: of the pictures in question.
        real: of the reference; none where there is none.
        captions: of the pictures in question.
        subset: pictures of a subset of the kernel distance, if chosen.
    """

    network: FeatureNetwork
    made: Extracted
    real: Extracted | None
    captions: Sequence[str]
    subset: int | None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Features of reference and pictures; asked for only where there is a reference."""
        return cast(Extracted, self.real).features, self.made.features

    @property
    def subset_size(self) -> int:
        """Pictures of a subset: half of the smaller set where it is small, so that subsets differ."""
        return self.subset or min(SUBSET, max(2, min(map(len, self.both)) // 2))


@dataclass(frozen=True)
class Measure:
    """One kind of figure.

    Attributes:
        words: how it is made.
        run: makes its figures.
        needs: what it cannot do without: ``reference``, ``captions``, ``logits`` or ``texts``.
    """

    words: str
    run: Callable[[Seen], Mapping[str, Any]]
    needs: tuple[str, ...] = ("reference",)


def _frechet(seen: Seen) -> dict[str, Any]:
    real, made = (Moments.of(features) for features in seen.both)
    if min(real.count, made.count) <= len(real.mean):
        LOG.warning(
            "%d pictures for features of width %d: the Frechet distance has little meaning",
            min(real.count, made.count),
            len(real.mean),
        )
    return {"frechet_distance": frechet_distance(real, made)}


def _kernel(seen: Seen) -> dict[str, Any]:
    found = kernel_distance(*seen.both, np.random.default_rng(SEED), size=seen.subset_size)
    return {"kernel_distance": {**found._asdict(), "subset": seen.subset_size}}


def _inception(seen: Seen) -> dict[str, Any]:
    logits = cast(Tensor, seen.made.logits)
    return {"inception_score": inception_score(logits, np.random.default_rng(SEED))._asdict()}


def _precision(seen: Seen) -> dict[str, Any]:
    real, made = seen.both
    if len(real) != len(made):
        LOG.warning(
            "%d pictures against %d of the reference: precision and recall depend on both numbers, and may be compared "
            "with those of the same numbers alone; see --n and --reference_n",
            len(made),
            len(real),
        )
    return precision_recall(real, made, device=device())._asdict()


def _clip(seen: Seen) -> dict[str, Any]:
    texts, total = cast(Callable[[Sequence[str]], Tensor], seen.network.texts), 0.0
    for start in range(0, len(seen.captions), 8 * BATCH):
        part = slice(start, start + 8 * BATCH)
        try:
            vectors = texts(seen.captions[part]).cpu()
        except ValueError as error:
            raise ValueError(f"clip_score: {error}, or name other figures with --metrics") from error
        total += float(clip_score(seen.made.features[part], vectors).sum())
    return {"clip_score": total / len(seen.captions)}


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
        lambda seen: density_coverage(*seen.both, device=device())._asdict(),
    ),
    "cmmd": Measure(
        f"Jayasumana et al. 2024: unit vectors, Gaussian of sigma {CMMD_SIGMA:g}, biased, times {CMMD_SCALE:g}; theirs "
        "is of ViT-L-14-336-quickgelu:openai",
        lambda seen: {"cmmd": cmmd(*seen.both, device=device())},
        ("reference", "texts"),
    ),
    "clip_score": Measure("mean cosine of pictures and captions", _clip, ("captions", "texts")),
}
