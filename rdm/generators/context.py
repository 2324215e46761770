"""Our own models as a generator: they see neighbours, or the condition of a plain model, as context tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.files import file_hash, located, portable
from rdm.generators.protocol import Drawing, Source
from rdm.loading import Loaded, find_checkpoint
from rdm.sampling.conditions import has_references
from rdm.sampling.generate import Draw, drawing, load_weaker, prepared
from rdm.sampling.plain import fitting
from rdm.sampling.request import Request
from rdm.sampling.settings import DIFFUSION, EDIT_SAMPLER, Settings
from rdm.sampling.watching import Progress

LOG = logging.getLogger(__name__)


class ContextGenerator:
    """Draws with a model of this project; see :class:`rdm.generators.protocol.Generator`.

    Args:
        loaded: the model with its database, or a plain model.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def complete(self, request: Request, settings: Settings) -> Settings:
        """Returns the settings completed for the model.

        Raises:
            FileNotFoundError: the weaker checkpoint does not exist.
            ValueError: a setting does not apply to the model or contradicts the request.
        """
        loaded = self.loaded
        if request.canvas is not None:
            comes_back = request.canvas.about["invert"] and request.asked.get("way") != "class"
            if comes_back and request.prompts is None:  # the inversion is unguided
                settings = settings.unguided(loaded.model, "an inversion without a prompt; give a prompt")
            settings = replace(settings, sampler=settings.sampler or EDIT_SAMPLER)
        if loaded.is_plain:
            settings = fitting(loaded, settings)
        settings = settings.for_model(loaded.model)
        if loaded.model.kind == DIFFUSION:
            check_times(settings, len(loaded.diffusion.schedule))
        if request.canvas is not None:
            say_what_is_kept(request.canvas.about["strength"], settings, loaded)
        if settings.weaker is not None:
            settings = replace(settings, weaker=str(find_checkpoint(settings.weaker)))
        settings.check_tokens(request.tokens)
        if not has_references(loaded.model) and (settings.reference_scale is not None or settings.reference_noise):
            raise ValueError(
                f"got reference_scale={settings.reference_scale}, reference_noise={settings.reference_noise} for a "
                "model that does not see the neighbours' pictures; leave them out"
            )
        guided = settings.scale != 1.0 or settings.text_scale not in (None, 1.0)
        if guided and not loaded.model.p_uncond:
            LOG.warning(
                "this model never saw the null context of classifier-free guidance in training (p_uncond is 0); "
                "set scale to 1 to sample without guidance"
            )
        return settings

    def drawing(self, settings: Settings) -> Drawing:
        """Loads the weaker model that the settings name, and returns the function that draws with the settings.

        Raises:
            ValueError: the weaker model does not fit.
        """
        weaker = None if settings.weaker is None else load_weaker(settings.weaker, self.loaded)

        @contextmanager
        def of_part(part: Request, progress: Progress | None) -> Iterator[Draw]:
            with prepared(self.loaded, settings):
                yield drawing(self.loaded, part, settings, weaker, progress)

        return of_part

    def about(self, settings: Settings) -> dict[str, Any]:
        """Returns the checkpoints and the config with their hashes."""
        path, config = self.loaded.path, self.loaded.config
        about: dict[str, Any] = {"checkpoint": portable(path), "checkpoint_sha256": file_hash(path)}
        if config:
            about |= {"config": str(config), "config_sha256": file_hash(config)}
        if settings.weaker is not None:
            about["weaker_sha256"] = file_hash(Path(settings.weaker))
        return about

    def sources(self, record: Mapping[str, Any]) -> list[Source]:
        """Returns the checkpoints and the config that a record names."""
        path, config = self.loaded.path, self.loaded.config
        sources = [(f"checkpoint {path}", file_hash(path), record["checkpoint_sha256"])]
        if config:
            sources.append((f"config {config}", file_hash(config), record["config_sha256"]))
        if weaker := record["settings"].get("weaker"):
            sources.append((f"checkpoint {weaker}", file_hash(located(weaker)), record["weaker_sha256"]))
        return sources


def say_what_is_kept(strength: float, settings: Settings, loaded: Loaded) -> None:
    """Logs that an edit leaves the picture as it is, because its strength is below that of the first step."""
    schedule = loaded.diffusion.schedule
    first = int(schedule.timesteps(settings.steps or 1, settings.spacing)[0])
    if first >= strength * len(schedule):
        LOG.warning(
            "strength %s is so small that none of the %s steps is taken: nothing is painted, and the images are the "
            "picture as the first stage decodes it; raise strength or steps",
            strength,
            settings.steps,
        )


def check_times(settings: Settings, times: int) -> None:
    """Checks that steps and interval fit the diffusion times of a model, 0 to ``times - 1``.

    Raises:
        ValueError: there are more steps than times, or the interval begins after the last time.
    """
    if settings.steps is not None and settings.steps > times:
        raise ValueError(f"got steps={settings.steps}, expected 1 to {times}, the number of times of the model")
    if settings.interval is not None and settings.interval[0] >= times:
        raise ValueError(f"got interval={settings.interval}, expected times from 0 to {times - 1}, those of the model")
