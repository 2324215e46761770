"""The names that an evaluation can be asked for by; light to import."""

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
WAYS = ("popular", "captions")  # of the samples of a report on memorisation
