"""Samples in one call: a way to ask, its arguments, and settings by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rdm.evaluate.sources import ModelSamples
from rdm.loading import Loaded
from rdm.sampling.request import Request
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import OPTIONS, Settings


def split(options: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings among some options, and the rest."""
    settings = {name: value for name, value in options.items() if name in OPTIONS}
    return Settings.of(**settings), {name: value for name, value in options.items() if name not in OPTIONS}


def draw(way: Callable[..., Request], loaded: Loaded, *what: Any, **options: Any) -> Samples:
    """The samples of what is asked for in a way, by the settings among the options."""
    settings, asked = split(options)
    return sample(loaded, way(loaded, *what, **asked), settings)


def model_samples(loaded: Loaded, n: int, prompts: Sequence[str] = (), **options: Any) -> ModelSamples:
    """The samples of an evaluation, by the settings among the options."""
    settings, asked = split(options)
    return ModelSamples(loaded, n, prompts, settings=settings, **asked)
