"""Translates the arguments of CompVis' retrieval-augmented classes into those of this project."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

LOG = logging.getLogger(__name__)
IDENTITIES = ("torch.nn.Identity", "rdm.modules.encoders.nn_encoders.IdentityEncoder")
RESHAPERS = tuple(
    f"rdm.modules.encoders.nn_encoders.{name}" for name in ("CLIPEmbeddingReshaper", "NNEmbeddingReshaper")
)
PERMUTERS = ("taming.modules.transformer.permuter.Identity", "torch.nn.Identity")
DATABASE_ARGUMENTS = ("retrieval_cfg", "nn_memory", "searcher_path")
RETRIEVAL_ARGUMENTS = (
    *("k_nn", "query_key", "retrieval_encoder_cfg", "nn_key", "p_uncond", "guidance_vex_shape"),
    *DATABASE_ARGUMENTS,
)
UNET_TARGET = "rdm.modules.diffusionmodules.openaimodel.UNetModel"  # CompVis' U-Net in ldm takes no list of contexts
UNCONDITIONAL = "__is_unconditional__"


def retrieval_arguments(
    k_nn: int,
    nn_key: str,
    retrieval_encoder_cfg: Mapping[str, Any],
    conditioning_key: str | None,
    cond_stage_config: Mapping[str, Any] | str | None,
) -> dict[str, Any]:
    """Returns the arguments of ``RetrievalAugmentedDiffusion`` for those of CompVis' ``MinimalRETRODiffusion``.

    Args:
        k_nn: number of neighbours of an image.
        nn_key: key of a batch for their embeddings, ``[B, K, D]`` or ``[B, patches, K, D]``.
        retrieval_encoder_cfg: must be an identity, because the U-Net is conditioned on raw vectors.
        conditioning_key: must be ``retro_only``, because neighbours are the only condition.
        cond_stage_config: must be ``__is_unconditional__``, for the same reason.

    Raises:
        ValueError: the neighbours are encoded, or there is another condition, which no released model has.
    """
    if retrieval_encoder_cfg.get("target") not in IDENTITIES:
        raise ValueError(f"retrieval_encoder_cfg: got {retrieval_encoder_cfg.get('target')}, expected {IDENTITIES[0]}")
    if conditioning_key not in (None, "retro_only", "crossattn"):
        raise ValueError(f"conditioning_key: got '{conditioning_key}', expected retro_only")
    if cond_stage_config not in (None, UNCONDITIONAL):
        raise ValueError(f"cond_stage_config: got {cond_stage_config}, expected {UNCONDITIONAL} beside neighbours")
    return {"conditioner": {"k": k_nn}, "neighbours_key": nn_key}


def autoregression_arguments(
    nn_key: str,
    nn_encoder_cfg: Mapping[str, Any],
    nn_reshaper_cfg: Mapping[str, Any] | None,
    cond_stage_config: Mapping[str, Any] | str | None,
    permuter_config: Mapping[str, Any] | None,
    pkeep: float,
) -> dict[str, Any]:
    """Returns the arguments of ``RetrievalAugmentedTransformer`` for those of CompVis' ``LatentImageRETRO``.

    Args:
        nn_key: key of a batch for the neighbours' embeddings, ``[B, K, D]`` or ``[B, patches, K, D]``.
        nn_encoder_cfg: must be an identity, because the network is conditioned on raw vectors.
        nn_reshaper_cfg: may only join the neighbours of all patches to one sequence, which is always done here.
        cond_stage_config: must be ``__is_unconditional__``: only the start token precedes the codes.
        permuter_config: must be an identity: the codes of an image are in row-major order.
        pkeep: must be 1: no code is replaced in training.

    Raises:
        ValueError: an argument that no released model has.
    """
    for name, config, known in (
        ("nn_encoder_cfg", nn_encoder_cfg, IDENTITIES),
        ("nn_reshaper_cfg", nn_reshaper_cfg, (*RESHAPERS, *IDENTITIES)),
        ("permuter_config", permuter_config, PERMUTERS),
    ):
        if config is not None and config.get("target") not in known:
            raise ValueError(f"{name}: got {config.get('target')}, expected {known[0]}")
    if cond_stage_config not in (None, UNCONDITIONAL):
        raise ValueError(f"cond_stage_config: got {cond_stage_config}, expected {UNCONDITIONAL} beside neighbours")
    if pkeep != 1:
        raise ValueError(f"pkeep: got {pkeep}, expected 1; codes are not replaced in training")
    return {"neighbours_key": nn_key}


def say_where_neighbours_come_from(**given: Any) -> None:
    """Logs which of CompVis' retrieval options were given and are ignored, because a model here has no retriever."""
    names = [name for name, value in given.items() if value]
    if names:
        LOG.warning("%s: ignored; the neighbours come from the batch, or from a Retriever", ", ".join(names))


def flat_neighbours(neighbours: Tensor) -> Tensor:
    """Returns neighbours ``[B, patches, K, D]``, as CompVis' data sets give them, as ``[B, patches K, D]``.

    Neighbours ``[B, K, D]`` are returned unchanged.
    """
    return neighbours.flatten(1, -2)
