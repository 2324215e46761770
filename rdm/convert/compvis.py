"""Exports retrieval-augmented models to checkpoints and configs for CompVis' code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.convert.autoencoder import with_plain_codes
from ldm.convert.compvis import SCHEDULERS, export_compvis, first_stage_of_compvis, write_compvis
from ldm.convert.unet import network_class
from rdm.compat import DATABASE_ARGUMENTS, IDENTITIES, RESHAPERS, RETRIEVAL_ARGUMENTS, UNCONDITIONAL, UNET_TARGET
from rdm.modules.diffusionmodules.openaimodel import UNetModel

LOG = logging.getLogger(__name__)
NO_AVERAGE = (
    "There is no running average. CompVis' class makes model_ema.* even with use_ema: false, so load model.ckpt with "
    "strict=False, as CompVis' scripts do; or export with --weights both, which a training there also averages on."
)


def export_model(model: Mapping[str, Any], state: Mapping[str, Tensor], output: str | Path) -> Path:
    """Writes ``model.ckpt``, ``config.yaml`` and ``README.md`` for CompVis' code; returns the path of ``model.ckpt``.

    Args:
        model: target and params of any latent diffusion model or first stage, with or without retrieval.
        state: its weights, see ``ldm.checkpoint.choose_weights``.
        output: the folder.

    Raises:
        ValueError: CompVis' code has no counterpart for a class or an option.
    """
    if not str(model["target"]).startswith("rdm."):
        return export_compvis(model, state, output, notes=_null_notes(model))
    if "transformer_config" in model["params"]:
        notes = _notes(model)
        model, state = with_plain_codes(model, state)
        return write_compvis({"model": _autoregressive_model(model, state)}, state, Path(output), notes)
    notes, model = _retrieval_model(model)
    state = dict(state)
    if not any(name.startswith("model_ema.") for name in state):
        notes += f"\n{NO_AVERAGE}"
    if not bool(state.get("unconditional_guidance_vex", torch.zeros(1)).any()):  # CompVis' code divides by its length
        state["unconditional_guidance_vex"] = torch.ones(*model["params"]["guidance_vex_shape"])
    return export_compvis(model, state, output, arguments=RETRIEVAL_ARGUMENTS, notes=notes)


def _null_notes(model: Mapping[str, Any]) -> str:
    """Returns notes about the null condition of a plain model, which CompVis' config has no place for."""
    params = model.get("params") or {}
    stage = params.get("cond_stage_config")
    if not params.get("p_uncond") or not isinstance(stage, Mapping):
        return ""
    classes = (stage.get("params") or {}).get("n_classes")
    null = "the empty text" if classes is None else f"class {classes - 1}"
    return f"Guidance leads away from {null}, the null condition: it was trained with p_uncond: {params['p_uncond']}."


def _retrieval_model(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns notes for a user of CompVis' code, and the model under CompVis' name and arguments."""
    notes, params = _notes(model), dict(model["params"])
    params.pop("use_neighbours", None)
    unet = {name: value for name, value in params["unet_config"]["params"].items() if name != "legacy"}
    kind = network_class(params["unet_config"])
    if unet.get("n_embed") is not None and kind.id_kernel != UNetModel.id_kernel:
        raise ValueError(
            f"unet_config: n_embed is {unet['n_embed']}, expected none; the id_predictor of {UNET_TARGET} has a kernel "
            f"of {UNetModel.id_kernel}, that of {params['unet_config']['target']} one of {kind.id_kernel}"
        )
    width = unet["context_dim"]
    conditioner = params.pop("conditioner", None) or {}
    k = params.get("k_nn", conditioner.get("k", 4))
    shape = params.get("guidance_vex_shape") or [width if isinstance(width, int) else width[0]]
    p_uncond = params.pop("p_uncond", 0.0 if "k_nn" in params else 0.1)
    if p_uncond and len(shape) == 1:  # one vector for all neighbours, which CompVis' training step cannot broadcast
        notes += f"\n{_dropping(p_uncond, k, shape[0])}"
        p_uncond = 0.0
    theirs = {
        "k_nn": k,
        "query_key": "clip_img_emb",
        "nn_key": "nn_embeddings",
        "retrieval_encoder_cfg": {"target": IDENTITIES[0]},
        "guidance_vex_shape": shape,
        "cond_stage_key": "nixda",
        "p_uncond": p_uncond,
    }
    params = {**theirs, **params, "conditioning_key": "retro_only", "cond_stage_config": UNCONDITIONAL}
    params["unet_config"] = {"target": UNET_TARGET, "params": unet}
    if not params.get("retrieval_cfg"):
        notes += "\nCompVis' scripts/rdm_sample.py also needs a database: retrieval_cfg and nn_memory in params."
    return notes, {**model, "target": "rdm.models.diffusion.ddpm.MinimalRETRODiffusion", "params": params}


def _dropping(p_uncond: float, k: int, width: int) -> str:
    """Returns the note on training with dropped contexts in CompVis' code."""
    return (
        f"The model was trained with p_uncond: {p_uncond}. Here it is 0: CompVis' training step stops with another "
        f"value, unless the null context has the shape of the neighbours, and then its sampling takes k_nn {k} only. "
        f"To train there with dropped contexts, set p_uncond: {p_uncond} and guidance_vex_shape: [{k}, {width}]. Then "
        f"put 1e-6 * torch.ones({k}, {width}) in the place of unconditional_guidance_vex in model.ckpt: the null "
        "context of the training was zeros, and CompVis' sampling divides by its length."
    )


def _autoregressive_model(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns an autoregressive model under CompVis' name and arguments."""
    params = model["params"]
    first = first_stage_of_compvis(params["first_stage_config"], False)
    scheduler = params.get("scheduler_config") or {}
    theirs = {
        "mask_token": int(state["mask_token"]),
        "sos_token": int(state["sos_token"]),
        "p_mask_max": params.get("p_mask_max", 0.0),
        "nn_key": params.get("nn_key", "nn_embeddings"),
        "nn_reshaper_cfg": {"target": RESHAPERS[0]},
        "nn_encoder_cfg": {"target": IDENTITIES[1]},
        "transformer_config": dict(params["transformer_config"]),
        # CompVis' model needs the encoder of this class, which returns codes; that of VQModelInterface does not.
        "first_stage_config": {**first, "target": "ldm.models.autoencoder.VQModel"},
        "cond_stage_config": UNCONDITIONAL,
        **({"scheduler_config": scheduler} if scheduler.get("target") in SCHEDULERS else {}),
        **{name: params[name] for name in DATABASE_ARGUMENTS if params.get(name)},
    }
    target = "rdm.models.autoregression.transformer.LatentImageRETRO"
    rate = model.get("base_learning_rate", params.get("learning_rate", 3e-4))
    return {"base_learning_rate": rate, "target": target, "params": theirs}


def _notes(model: Mapping[str, Any]) -> str:
    """Returns notes for a user of CompVis' code about a model that is conditioned on neighbours.

    Raises:
        ValueError: the model is not conditioned on neighbours, or also on their latents or grids of their tokens.
    """
    params = model["params"]
    if not params.get("use_neighbours", True):
        raise ValueError("use_neighbours is false, expected true; CompVis' code has no model without neighbours")
    if params.get("references") not in (None, False):
        raise ValueError("references are given, expected none; CompVis' code has no model with reference latents")
    notes, conditioner = "For CompVis' code; the null context is zeros.", params.get("conditioner") or {}
    if conditioner.get("tokens", "pooled") != "pooled":
        raise ValueError("conditioner.tokens is grid, expected pooled; CompVis' code has no model with grids of tokens")
    if conditioner.get("normalize"):
        length = f"length {conditioner.get('scale', 1.0)}"
        notes += f"\nThe model was trained on vectors of {length}: scale every neighbour (and query) to it before."
        LOG.warning("the model was trained on vectors of %s; scale neighbours to it, see config.yaml", length)
    return notes
