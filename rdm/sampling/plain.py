"""Requests to plain latent diffusion models: images of texts, of classes, or of nothing in particular.

Such a model has no database, so a request has no neighbours. What its cond stage encodes stands in the request itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ldm.models.diffusion.condition import Condition
from ldm.models.diffusion.ddpm import CLASSES, TEXTS, LatentDiffusion
from ldm.util import nearest
from rdm.loading import Loaded
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.canvas import Canvas
from rdm.sampling.request import PLAIN, Request
from rdm.sampling.settings import Settings

LOG = logging.getLogger(__name__)
# For what a model reads, what it is, and the option that says it.
KINDS = {
    None: ("unconditional", "sample.py, or nothing in Python"),
    CLASSES: ("class-conditional", "class2img.py, or --class of edit.py"),
    TEXTS: ("conditioned on texts", "txt2img.py, or --prompt of edit.py"),
}


def unconditional(loaded: Loaded, n: int, *, seed: int = 0, **others: Any) -> Request:
    """Requests n images of nothing in particular.

    A model that reads classes or texts sees its null condition; that of classes is trained with ``p_uncond`` only.

    Args:
        loaded: a plain model.
        n: number of images.
        seed: the seed of the first image.
        others: what only retrieval-augmented models take, see :func:`refuse`.

    Raises:
        ValueError: the model needs a class or a text, or one of the others is given.
    """
    refuse(loaded, **others)
    model = loaded.plain
    given: list[Any] | None = None
    if model.reads is not None:
        if not model.has_null:
            what, remedy = kind_of(loaded)
            raise ValueError(f"{loaded.path} is {what} and has no null condition (p_uncond is 0); use {remedy}")
        given = [None] * n
    return _request(["unconditional"] * n, range(seed, seed + n), {"way": "unconditional"}, given)


def texts(loaded: Loaded, prompts: Sequence[str], *, seed: int = 0, **others: Any) -> Request:
    """Requests one image for each text; for the arguments see :func:`unconditional`.

    Raises:
        ValueError: the model does not read texts, or one of the others is given.
    """
    refuse(loaded, **others)
    check_reads(loaded, TEXTS)
    seeds = range(seed, seed + len(prompts))
    return replace(_request(prompts, seeds, {"way": "text"}, list(prompts)), prompts=prompts)


def classes(loaded: Loaded, names: Sequence[str], *, seed: int = 0, **others: Any) -> Request:
    """Requests one image for each class, by its name or its number; for the arguments see :func:`unconditional`.

    Raises:
        ValueError: the model is not class-conditional, there is no such class, or one of the others is given.
    """
    refuse(loaded, **others)
    numbers = {name: class_number(loaded, name) for name in dict.fromkeys(names)}
    seeds = range(seed, seed + len(names))
    return _request(names, seeds, {"way": "class"}, [numbers[name] for name in names])


def edited(
    loaded: Loaded, canvas: Canvas, n: int, prompt: str | None, name: str | None, *, seed: int, **others: Any
) -> Request:
    """Requests n edits of the picture of a canvas, of a text, of a class, or of nothing in particular.

    During an inversion, the model sees its null condition if it has one, else the condition of the request.

    Raises:
        ValueError: the model does not read what is given, or needs it; or one of the others is given.
    """
    if prompt is not None and name is not None:
        raise ValueError("got a prompt and a class, expected one of them")
    if prompt is not None:
        request = texts(loaded, [prompt] * n, seed=seed, **others)
    elif name is not None:
        request = classes(loaded, [name] * n, seed=seed, **others)
    else:
        request = unconditional(loaded, n, seed=seed, **others)
        request = replace(request, labels=[str(canvas.about["picture"])] * n)
    return replace(request, canvas=with_inversion(loaded, canvas, request.given))


def with_inversion(loaded: Loaded, canvas: Canvas, given: Sequence[Any] | None) -> Canvas:
    """Returns the canvas with the condition of an inversion, if it asks for one."""
    if not canvas.about["invert"] or given is None:
        return canvas
    shown = [None] if loaded.plain.has_null else list(given[:1])
    return replace(canvas, context=condition_of(loaded.plain, shown))


def _request(labels: Sequence[str], seeds: Sequence[int], asked: dict[str, Any], given: list[Any] | None) -> Request:
    return Request(no_neighbours(len(labels)), labels, seeds, asked, tokens=PLAIN, given=given)


def no_neighbours(n: int) -> Retrieved:
    """Returns the neighbours of n images that have none."""
    return Retrieved(torch.zeros(n, 0, 0), np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32))


def kind_of(loaded: Loaded) -> tuple[str, str]:
    """Returns what a plain model is, and how to ask it for images.

    Raises:
        ValueError: it reads neither classes nor texts.
    """
    reads = loaded.plain.reads
    if reads not in KINDS:
        stage, key = type(loaded.plain.cond_stage_model).__name__, loaded.plain.cond_stage_key
        raise ValueError(
            f"{loaded.path} is conditioned on '{key}' by a {stage}, expected classes, texts or nothing; call the "
            "model's own sample() with the output of its context()"
        )
    return KINDS[reads]


def check_reads(loaded: Loaded, expected: str) -> None:
    """Checks that a plain model reads classes, or texts.

    Raises:
        ValueError: it does not.
    """
    what, remedy = kind_of(loaded)
    if loaded.plain.reads != expected:
        raise ValueError(f"{loaded.path} is {what}, expected a model that reads {expected}; use {remedy}")


def refuse(loaded: Loaded, **others: Any) -> None:
    """Refuses options that need a database or the embeddings of neighbours.

    Raises:
        ValueError: an option is given.
    """
    kind_of(loaded)
    for name, value in others.items():
        if value not in (None, False):
            raise ValueError(f"got {name}={value!r} for {loaded.path}, a plain model without a database; leave it out")


def class_count(loaded: Loaded) -> int:
    """Returns the number of classes of a class-conditional model, without the null class."""
    model = loaded.plain
    return int(model.cond_stage_model.n_classes) - bool(model.p_uncond)


def class_number(loaded: Loaded, name: str) -> int:
    """Returns the number of a class of a class-conditional model.

    Args:
        loaded: a plain model.
        name: the name of the class; a part of its name between slashes that no other class has; or its number.

    Raises:
        ValueError: the model is not class-conditional, or there is no such class; the message names the nearest one.
    """
    check_reads(loaded, CLASSES)
    names, count = list(loaded.class_names), class_count(loaded)
    if name in names:
        return names.index(name)
    matching = [number for number, known in enumerate(names) if name in known.split("/")]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ValueError(f"got class '{name}', expected one of {', '.join(names[number] for number in matching)}")
    if name.isdecimal() and int(name) < count:
        return int(name)
    known = nearest(name, [*names, *(part for each in names for part in each.split("/"))])
    expected = f"a number from 0 to {count - 1}" + (f" or one of {', '.join(names)}" if names else "")
    raise ValueError(f"{loaded.path} has no class '{name}'{known or f'; expected {expected}'}")


def condition_of(model: LatentDiffusion, given: Sequence[Any] | None) -> Condition:
    """Returns the condition of texts or class numbers, of which None stands for the null condition.

    Each one is encoded by itself, so that the last bits of an image do not depend on the others.

    Args:
        model: a plain model.
        given: the texts or numbers; None for a model without a condition.
    """
    if given is None:
        return None
    null = model.cond_stage_model.n_classes - 1 if model.reads == CLASSES else ""
    read: dict[Any, Any] = {}
    for each in given:
        if each not in read:
            with torch.no_grad():
                read[each] = model.condition_of([null if each is None else each])
    return torch.cat([read[each] for each in given])


class PlainConditions:
    """The conditions of the images of a request to a plain model; see :class:`rdm.sampling.conditions.Conditions`.

    Args:
        model: the model.
        request: the request.
        settings: the settings.
    """

    def __init__(self, model: LatentDiffusion, request: Request, settings: Settings) -> None:
        self.model, self.request, self.scale = model, request, settings.guidance

    def of(self, places: Sequence[int], seeds: Sequence[int]) -> tuple[Condition, list[Any], float]:  # noqa: ARG002
        """Returns the condition of some images, no parts, and the guidance scale."""
        given = self.request.given
        return condition_of(self.model, None if given is None else [given[place] for place in places]), [], self.scale


def fitting(loaded: Loaded, settings: Settings) -> Settings:
    """Returns the settings for a plain model: there are no rows to compare with, and guidance needs a null condition.

    Raises:
        ValueError: a setting needs an embedder, or guidance is asked for without a null condition.
    """
    for name, default in (("best_of", 1), ("reject_copies", 0), ("retrieve_below", None)):
        if (value := getattr(settings, name)) != default:
            raise ValueError(
                f"got {name}={value} for {loaded.path}, a plain model without an embedder and a database; leave it out"
            )
    settings = replace(settings, copy_threshold=None)
    model = loaded.plain
    if model.has_null or settings.scale == 1.0:
        return settings
    if settings.scale != Settings.scale:
        remedy = "leave out scale" if model.reads is None else "leave out scale, or train the model with p_uncond"
        raise ValueError(f"got scale={settings.scale} for {loaded.path}, which has no null condition; {remedy}")
    if model.reads is not None:
        LOG.info("the model has no null condition (p_uncond is 0), so images are sampled without guidance")
    return replace(settings, scale=1.0)
