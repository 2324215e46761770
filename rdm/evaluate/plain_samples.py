"""Samples of a plain latent diffusion model as a source of pictures for an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.files import file_hash
from ldm.models.diffusion.ddpm import CLASSES
from rdm.evaluate.sources import ModelSamples, digest, recorded
from rdm.loading import Loaded, config_beside, model_config
from rdm.sampling import ways
from rdm.sampling.plain import class_count
from rdm.sampling.request import Request
from rdm.sampling.samples import settings_of
from rdm.sampling.settings import Settings
from rdm.sampling.values import TOP_M


class PlainSamples(ModelSamples):
    """Images of a plain model: of prompts, of all its classes in turn, or of nothing in particular.

    Image i of a class-conditional model is of class ``i % count``, so that all classes are equally frequent. For the
    arguments see :class:`ModelSamples`; those that concern neighbours are refused.
    """

    def __init__(
        self,
        loaded: Loaded,
        n: int,
        prompts: Sequence[str] = (),
        *,
        settings: Settings,
        k: int | None = None,
        seed: int = 0,
        top_m: float | int = TOP_M,
        weighted: bool = False,
        tokens: str = "neighbours",
    ) -> None:
        self.loaded, self.n, self.k, self.seed, self.tokens = loaded, n, k or 0, seed, tokens
        self.settings = replace(settings, copy_threshold=None, reject_copies=0)
        self.has_prompts = bool(prompts)
        self.popular: dict[str, Any] = {"top_m": top_m, "weighted": weighted}
        self.captions = [prompts[place % len(prompts)] for place in range(n)] if prompts else [""] * n
        self.count = class_count(loaded) if loaded.plain.reads == CLASSES else 0
        sampled = settings_of(loaded, self.request(0, 1), self.settings)
        query: dict[str, Any] = dict(self.request(0, 1).asked)
        if prompts:
            query |= {"prompts": len(prompts), "sha256": digest(list(prompts))}
        elif self.count:
            query |= {"classes": self.count}
        config = model_config(loaded.config, loaded.path) if loaded.config else config_beside(loaded.path)
        record = {
            "checkpoint_sha256": file_hash(loaded.path),
            "config_sha256": digest(config["model"]),
            "asked": query,
            "settings": recorded(sampled, loaded.model.kind),
            "weaker_sha256": file_hash(Path(sampled.weaker)) if sampled.weaker else None,
            "seeds": [seed, seed + n - 1],
            "n": n,
        }
        self.fingerprint = digest([record, [torch.__version__, loaded.model.device.type, sampled.compile]])
        self.about = {"checkpoint": str(loaded.path), **record, "sha256": digest(record)}

    def request(self, start: int, stop: int) -> Request:
        """Returns the request for the images with numbers from ``start`` up to ``stop``."""
        common: dict[str, Any] = {"k": self.k or None, "seed": self.seed + start}
        if self.has_prompts:
            return ways.texts(self.loaded, self.captions[start:stop], tokens=self.tokens, **common)
        if self.count:
            names = [str(place % self.count) for place in range(start, stop)]
            return ways.classes(self.loaded, names, tokens=self.tokens, **common)
        return ways.popular(self.loaded, stop - start, **self.popular, **common)

    def neighbour_rows(self) -> list[set[int]]:
        """Returns an empty set for each image, as there are no neighbours."""
        return [set() for _ in range(self.n)]


def samples_of(loaded: Loaded, n: int, prompts: Sequence[str] = (), **options: Any) -> ModelSamples:
    """Returns the samples of a model of any kind; for the arguments see :class:`ModelSamples`."""
    return (PlainSamples if loaded.is_plain else ModelSamples)(loaded, n, prompts, **options)
