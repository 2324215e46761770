"""From a request to images: a context of what was retrieved, sampling, the copy check and the best of several."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from torch import Tensor

from rdm.loading import Loaded, find_checkpoint
from rdm.sampling.copies import CopyCheck, Likeness
from rdm.sampling.generate import drawing, prepared
from rdm.sampling.ranking import Candidate, check_best_of, draw_best
from rdm.sampling.request import Request
from rdm.sampling.settings import EDIT_SAMPLER, Settings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Images with what they were made from.

    Attributes:
        images: ``[B, 3, H, W]`` in [-1, 1].
        request: what was asked for.
        settings: how they were sampled, with the model's own values where nothing was set.
        seeds: seed of each image; it is not the request's where an image was drawn again, or chosen from several.
        copies: result of each image's copy check; None where images were not checked.
        candidates: what each image was chosen from; None where it is the only one.
    """

    images: Tensor
    request: Request
    settings: Settings
    seeds: list[int]
    copies: list[Likeness] | None = None
    candidates: list[tuple[Candidate, ...]] | None = None


def sample(loaded: Loaded, request: Request, settings: Settings) -> Samples:
    """Returns one image for each set of neighbours of a request.

    Raises:
        FileNotFoundError: there is no weaker checkpoint.
        ValueError: settings that the model does not take or that contradict the request; a size that the model cannot
            make; or several candidates that would be one image.
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
    """Returns settings completed for a model and a request, after a check that all three fit together.

    Raises:
        FileNotFoundError: there is no weaker checkpoint.
        ValueError: see :func:`sample`.
    """
    if request.canvas is not None:
        comes_back = request.canvas.about["invert"] and request.prompts is None
        scale = 1.0 if comes_back else settings.scale  # as it was inverted
        settings = replace(settings, sampler=settings.sampler or EDIT_SAMPLER, scale=scale)
    settings = settings.for_model(loaded.model)
    if settings.weaker is not None:
        settings = replace(settings, weaker=str(find_checkpoint(settings.weaker)))
    check_best_of(settings, request)
    if request.canvas is not None and (settings.height or settings.width):
        raise ValueError(
            f"got height={settings.height} and width={settings.width} with a picture to edit, expected neither: images "
            "have the size of the picture"
        )
    if settings.text_scale is not None and request.tokens != "both":
        raise ValueError(
            f"got text_scale={settings.text_scale} with a context of {request.tokens}, expected one of both"
        )
    guided = settings.scale != 1.0 or settings.text_scale not in (None, 1.0)
    if guided and not loaded.model.p_uncond:
        LOG.warning("guidance leads away from a null that was never trained (p_uncond is 0); scale 1 does without")
    return settings
