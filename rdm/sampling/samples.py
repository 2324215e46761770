"""Sampling: makes the images of a request, with copy detection and re-ranking."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.stepping import Watch
from rdm.loading import Loaded, find_checkpoint
from rdm.models.diffusion.ddpm import RetrievalAugmentedDiffusion
from rdm.sampling.conditions import has_references
from rdm.sampling.copies import CopyCheck, Likeness
from rdm.sampling.generate import drawing, load_weaker, prepared
from rdm.sampling.plain import fitting
from rdm.sampling.ranking import Candidate, check_best_of, draw_best
from rdm.sampling.request import Request
from rdm.sampling.settings import DIFFUSION, EDIT_SAMPLER, Settings
from rdm.sampling.watching import Progress

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Images together with the request and the settings that they were sampled with.

    Attributes:
        images: ``[B, 3, H, W]`` in [-1, 1].
        request: the request.
        settings: the settings, completed with the model's defaults.
        seeds: the seed of each image. It differs from the request's if the image was redrawn or chosen by re-ranking.
        copies: the result of copy detection for each image; None without copy detection.
        candidates: the candidates for each image; None without re-ranking.
    """

    images: Tensor
    request: Request
    settings: Settings
    seeds: list[int]
    copies: list[Likeness] | None = None
    candidates: list[tuple[Candidate, ...]] | None = None

    def part(self, places: Sequence[int]) -> Samples:
        """Returns some of the images, given their places."""
        some = list(places)
        return replace(
            self,
            images=self.images[some],
            request=self.request.part(some),
            seeds=[self.seeds[place] for place in some],
            copies=None if self.copies is None else [self.copies[place] for place in some],
            candidates=None if self.candidates is None else [self.candidates[place] for place in some],
        )


def sample(loaded: Loaded, request: Request, settings: Settings, watch: Watch | None = None) -> Samples:
    """Samples one image for each set of neighbours of a request.

    Args:
        loaded: model and database.
        request: the request.
        settings: the settings.
        watch: told after each denoising step, or each code of an autoregressive model: the number of steps that are
            done, the number of all steps of the request, and a function that returns how the images of the present
            batch look so far, ``[b, 3, H, W]`` in [-1, 1]; during an inversion, it is one image for all. Further draws
            of images that are flagged as copies raise the number of all steps. What the watcher raises, such as
            :class:`ldm.stopping.Stopped`, ends sampling.

    Raises:
        FileNotFoundError: the weaker checkpoint does not exist.
        ValueError: a setting does not apply to the model or contradicts the request, the model cannot make images of
            this size, or all candidates for an image would be the same.
    """
    return joined(request, list(sample_batches(loaded, request, settings, watch)))


def sample_batches(
    loaded: Loaded, request: Request, settings: Settings, watch: Watch | None = None
) -> Iterator[Samples]:
    """Yields the images of a request in order, ``batch_size`` at a time, so that memory does not grow with the request.

    Arguments and images are those of :func:`sample`, and so are the errors, which are raised at once where they concern
    settings.
    """
    settings = settings_of(loaded, request, settings)
    weaker = None if settings.weaker is None else load_weaker(settings.weaker, loaded)
    return _batches(loaded, request, settings, weaker, watch)


def _batches(
    loaded: Loaded,
    request: Request,
    settings: Settings,
    weaker: RetrievalAugmentedDiffusion | None,
    watch: Watch | None,
) -> Iterator[Samples]:
    check = None if settings.copy_threshold is None else CopyCheck(settings.copy_threshold, settings.reject_copies)
    count, size, retriever = len(request.seeds), settings.batch_size or 1, loaded.retriever
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    batches = [-(-len(places) * settings.best_of // size) for places in parts]
    progress = None if watch is None else Progress(watch, sum(batches))
    for number, places in enumerate(tqdm(parts, desc="sampling", unit="batch", leave=None, disable=len(parts) < 2)):
        if progress is not None:
            progress.part(batches[number])
        part = request.part(places)
        with prepared(loaded, settings):
            draw, neighbours = drawing(loaded, part, settings, weaker, progress), part.retrieved.embeddings
            drawn = draw_best(draw, part.seeds, neighbours, retriever, check, settings.best_of, part.queries)
        images, seeds, copies, candidates = drawn
        yield Samples(images, part, settings, seeds, copies, candidates)


def joined(request: Request, parts: Sequence[Samples]) -> Samples:
    """Returns the samples of a request, given those of its parts in order."""
    copies, candidates = (
        None if getattr(parts[0], name) is None else [each for part in parts for each in getattr(part, name)]
        for name in ("copies", "candidates")
    )
    seeds = [seed for part in parts for seed in part.seeds]
    return Samples(torch.cat([part.images for part in parts]), request, parts[0].settings, seeds, copies, candidates)


def settings_of(loaded: Loaded, request: Request, settings: Settings) -> Settings:
    """Returns the settings completed for a model and a request, and checks that model, request and settings fit.

    Raises:
        FileNotFoundError: the weaker checkpoint does not exist.
        ValueError: see :func:`sample`.
    """
    if request.canvas is not None:
        comes_back = request.canvas.about["invert"] and request.asked.get("way") != "class" and request.prompts is None
        if comes_back:  # the inversion is unguided
            settings = settings.unguided("an inversion without a prompt; give a prompt")
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
    check_best_of(settings, request)
    if request.canvas is not None and (settings.height or settings.width):
        raise ValueError(
            f"got height={settings.height} and width={settings.width} with a picture to edit, expected neither, as "
            "images have the size of the picture; leave them out"
        )
    settings.check_tokens(request.tokens)
    if not has_references(loaded.model) and (settings.reference_scale is not None or settings.reference_noise):
        raise ValueError(
            f"got reference_scale={settings.reference_scale}, reference_noise={settings.reference_noise} for a model "
            "that does not see the neighbours' pictures; leave them out"
        )
    guided = settings.scale != 1.0 or settings.text_scale not in (None, 1.0)
    if guided and not loaded.model.p_uncond:
        LOG.warning(
            "this model never saw the null context of classifier-free guidance in training (p_uncond is 0); "
            "set scale to 1 to sample without guidance"
        )
    return settings


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
