"""What is usual: the options of sampling where nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ldm.models.diffusion.samplers import USUAL, USUAL_STEPS
from rdm.cli.sampling import own_options
from rdm.loading import Model, find_checkpoint
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer


def settled(options: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Returns the options of sampling that a model takes, and what is usual where one says nothing.

    Raises:
        ValueError: one is for the other kind of model.
    """
    autoregressive = isinstance(model, RetrievalAugmentedTransformer)
    options = own_options(options, autoregressive)
    options["batch_size"] = options.get("batch_size") or usual_batch_size(model)
    if not autoregressive:
        options["sampler"] = options.get("sampler") or USUAL
        options["steps"] = options.get("steps") or USUAL_STEPS.get(options["sampler"])
    if options.get("weaker"):
        options["weaker"] = str(find_checkpoint(options["weaker"]))
    return options


def usual_batch_size(model: torch.nn.Module) -> int:
    """Returns how many images are sampled together: on a CPU one, as a U-Net gains little from more, else eight.

    A transformer reads all its weights for one code of each image: on a CPU, four cost it little more than one.
    """
    few = 4 if isinstance(model, RetrievalAugmentedTransformer) else 1
    return few if next(model.parameters()).device.type == "cpu" else 8
