"""Generators: they make the images of a request. Ours see context tokens, a pipeline of diffusers sees image prompts.

:func:`generator_of` returns the generator of a loaded model. What comes before it (queries, retrieval, filters) and
after it (copy detection, re-ranking, records, sheets) is the same for all.
"""

from __future__ import annotations

from typing import Any

from rdm.generators.context import ContextGenerator
from rdm.generators.image_prompts import ImagePromptGenerator
from rdm.generators.protocol import Generator
from rdm.loading import Loaded
from rdm.sampling.settings import AUTOREGRESSION, DIFFUSERS, DIFFUSION

GENERATORS: dict[str, Any] = {
    DIFFUSION: ContextGenerator,
    AUTOREGRESSION: ContextGenerator,
    DIFFUSERS: ImagePromptGenerator,
}


def generator_of(loaded: Loaded) -> Generator:
    """Returns the generator of a loaded model."""
    generator: Generator = GENERATORS[loaded.model.kind](loaded)
    return generator
