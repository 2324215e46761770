"""Samples of a plain latent diffusion model as a source of pictures for an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.models.diffusion.ddpm import CLASSES
from rdm.evaluate.sources import ModelSamples
from rdm.loading import Loaded
from rdm.sampling import ways
from rdm.sampling.plain import class_count
from rdm.sampling.request import Request


class PlainSamples(ModelSamples):
    """Images of a plain model: of prompts, of all its classes in turn, or of nothing in particular.

    Image i of a class-conditional model is of class ``i % count``, so that all classes are equally frequent. For the
    arguments see :class:`ModelSamples`; those that concern neighbours are refused.
    """

    def prepare(self, prompts: Sequence[str], popular: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`ModelSamples.prepare`; a plain model has no query vectors."""
        self.popular = popular
        self.count = class_count(self.loaded) if self.loaded.plain.reads == CLASSES else 0
        counted = {"classes": self.count} if self.count and not prompts else {}
        return {**self.request(0, 1).asked, **counted}

    def sources(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Returns nothing, as there is no database."""
        return {}, {}, {}

    def request(self, start: int, stop: int) -> Request:
        """Returns the request for the images with numbers from ``start`` up to ``stop``."""
        common: dict[str, Any] = {"k": self.k or None, "seed": self.seed + start}
        if self.has_prompts:
            return ways.texts(self.loaded, self.captions[start:stop], tokens=self.tokens, **common)
        if self.count:
            names = [str(place % self.count) for place in range(start, stop)]
            return ways.classes(self.loaded, names, tokens=self.tokens, **common)
        return ways.popular(self.loaded, stop - start, **self.popular, **common)


def samples_of(loaded: Loaded, n: int, prompts: Sequence[str] = (), **options: Any) -> ModelSamples:
    """Returns the samples of a model of any kind; for the arguments see :class:`ModelSamples`."""
    return (PlainSamples if loaded.is_plain else ModelSamples)(loaded, n, prompts, **options)
