"""Sampling: makes the images of a request, with copy detection and re-ranking."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from torch import Tensor

from rdm.loading import Loaded, find_checkpoint
from rdm.sampling.conditions import has_references
from rdm.sampling.copies import CopyCheck, Likeness
from rdm.sampling.generate import drawing, prepared
from rdm.sampling.plain import fitting
from rdm.sampling.ranking import Candidate, check_best_of, draw_best
from rdm.sampling.request import Request
from rdm.sampling.settings import EDIT_SAMPLER, Settings

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


def sample(loaded: Loaded, request: Request, settings: Settings) -> Samples:
    """Samples one image for each set of neighbours of a request.

    Raises:
        FileNotFoundError: the weaker checkpoint does not exist.
        ValueError: a setting does not apply to the model or contradicts the request, the model cannot make images of
            this size, or all candidates for an image would be the same.
    """
    settings = settings_of(loaded, request, settings)
    check = None if settings.copy_threshold is None else CopyCheck(settings.copy_threshold, settings.reject_copies)
    neighbours, retriever = request.retrieved.embeddings, loaded.retriever
    with prepared(loaded, settings):
        draw = drawing(loaded, request, settings)
        images, seeds, copies, candidates = draw_best(
            draw, request.seeds, neighbours, retriever, check, settings.best_of, request.queries
        )
    return Samples(images, request, settings, seeds, copies, candidates)


def settings_of(loaded: Loaded, request: Request, settings: Settings) -> Settings:
    """Returns the settings completed for a model and a request, and checks that model, request and settings fit.

    Raises:
        FileNotFoundError: the weaker checkpoint does not exist.
        ValueError: see :func:`sample`.
    """
    if request.canvas is not None:
        comes_back = request.canvas.about["invert"] and request.asked.get("way") != "class" and request.prompts is None
        scale = 1.0 if comes_back else settings.scale  # the inversion is unguided
        settings = replace(settings, sampler=settings.sampler or EDIT_SAMPLER, scale=scale)
    if loaded.is_plain:
        settings = fitting(loaded, settings)
    settings = settings.for_model(loaded.model)
    if settings.weaker is not None:
        settings = replace(settings, weaker=str(find_checkpoint(settings.weaker)))
    check_best_of(settings, request)
    if request.canvas is not None and (settings.height or settings.width):
        raise ValueError(
            f"got height={settings.height} and width={settings.width} with a picture to edit, expected neither, as "
            "images have the size of the picture; leave them out"
        )
    if settings.text_scale is not None and request.tokens != "both":
        raise ValueError(f"got text_scale={settings.text_scale} with tokens '{request.tokens}', expected tokens 'both'")
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
