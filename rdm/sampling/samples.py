"""Sampling: makes the images of a request, with copy detection and re-ranking."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.models.diffusion.stepping import Watch
from rdm.generators import generator_of
from rdm.generators.protocol import Drawing
from rdm.loading import Loaded
from rdm.sampling.copies import CopyCheck, Likeness
from rdm.sampling.drafts import Draft, check_drafts, draw_where_needed
from rdm.sampling.ranking import Candidate, Drawn, check_best_of, draw_best
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings
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
        drafts: the draft of each image; None without drafts.
    """

    images: Tensor
    request: Request
    settings: Settings
    seeds: list[int]
    copies: list[Likeness] | None = None
    candidates: list[tuple[Candidate, ...]] | None = None
    drafts: list[Draft] | None = None

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
            drafts=None if self.drafts is None else [self.drafts[place] for place in some],
        )

    def is_draft(self, place: int) -> bool:
        """Returns whether an image is a draft that was kept, so that the model saw no neighbour."""
        return self.drafts is not None and self.drafts[place].kept


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
    return _batches(loaded, request, settings, generator_of(loaded).drawing(settings), watch)


def _batches(
    loaded: Loaded,
    request: Request,
    settings: Settings,
    drawing: Drawing,
    watch: Watch | None,
) -> Iterator[Samples]:
    check = None if settings.copy_threshold is None else CopyCheck(settings.copy_threshold, settings.reject_copies)
    count, size, retriever = len(request.seeds), settings.batch_size or 1, loaded.retriever
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    batches = [-(-len(places) * settings.best_of // size) for places in parts]
    progress = None if watch is None else Progress(watch, sum(batches))

    def drawn(part: Request) -> Drawn:
        with drawing(part, progress) as draw:
            neighbours = part.retrieved.embeddings
            return draw_best(draw, part.seeds, neighbours, retriever, check, settings.best_of, part.queries)

    kept = 0
    for number, places in enumerate(tqdm(parts, desc="sampling", unit="batch", leave=None, disable=len(parts) < 2)):
        if progress is not None:
            progress.part(batches[number])
        part = request.part(places)
        if settings.retrieve_below is None:
            found, drafts = drawn(part), None
        else:
            found, drafts = draw_where_needed(drawn, part, settings.retrieve_below, retriever.embedder)
            kept += sum(draft.kept for draft in drafts)
        yield Samples(found.images, part, settings, found.seeds, found.copies, found.candidates, drafts)
    if settings.retrieve_below is not None:
        LOG.info("%d of %d drafts were kept; the other images were drawn with neighbours", kept, count)


def joined(request: Request, parts: Sequence[Samples]) -> Samples:
    """Returns the samples of a request, given those of its parts in order."""
    lists: dict[str, Any] = {
        name: None if getattr(parts[0], name) is None else [each for part in parts for each in getattr(part, name)]
        for name in ("seeds", "copies", "candidates", "drafts")
    }
    return Samples(torch.cat([part.images for part in parts]), request, parts[0].settings, **lists)


def settings_of(loaded: Loaded, request: Request, settings: Settings) -> Settings:
    """Returns the settings completed for a model and a request, and checks that model, request and settings fit.

    Raises:
        FileNotFoundError: the weaker checkpoint does not exist.
        ValueError: see :func:`sample`.
    """
    settings = generator_of(loaded).complete(request, settings)
    check_best_of(settings, request)
    check_drafts(settings, request)
    if request.canvas is not None and (settings.height or settings.width):
        raise ValueError(
            f"got height={settings.height} and width={settings.width} with a picture to edit, expected neither, as "
            "images have the size of the picture; leave them out"
        )
    return settings
