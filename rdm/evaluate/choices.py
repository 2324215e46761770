"""The names of the metrics and of the ways to sample. The module imports nothing heavy, so ``--help`` can use it."""

from __future__ import annotations

METRICS = (
    "frechet_distance",
    "kernel_distance",
    "inception_score",
    "precision_recall",
    "density_coverage",
    "cmmd",
    "clip_score",
)
WAYS = ("popular", "captions")  # how the memorisation report samples: from popular rows, or by captions
