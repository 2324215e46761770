"""CompVis' arguments in our terms: the one place behind the doors that knows their names."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.convert.autoencoder import with_plain_codes
from ldm.convert.compvis import SCHEDULERS, export_compvis, first_stage_of_compvis, write_compvis
from ldm.convert.unet import check_network

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
UNET_TARGET = "rdm.modules.diffusionmodules.openaimodel.UNetModel"  # their other class takes no list of contexts
UNCONDITIONAL = "__is_unconditional__"


def retrieval_arguments(
    k_nn: int,
    nn_key: str,
    retrieval_encoder_cfg: Mapping[str, Any],
    conditioning_key: str | None,
    cond_stage_config: Mapping[str, Any] | str | None,
) -> dict[str, Any]:
    """Returns arguments of ``RetrievalAugmentedDiffusion`` for those of CompVis' ``MinimalRETRODiffusion``.

    Args:
        k_nn: neighbours an image is given.
        nn_key: where a batch holds their embeddings, ``[B, K, D]`` or ``[B, patches, K, D]``.
        retrieval_encoder_cfg: an identity: the U-Net looks at raw vectors.
        conditioning_key: ``retro_only``: it looks at nothing else.
        cond_stage_config: ``__is_unconditional__``, for the same reason.

    Raises:
        ValueError: a model that no release has: an encoder of neighbours, or another condition beside them.
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
    """Returns arguments of ``RetrievalAugmentedTransformer`` for those of CompVis' ``LatentImageRETRO``.

    Args:
        nn_key: where a batch holds the neighbours' embeddings, ``[B, K, D]`` or ``[B, patches, K, D]``.
        nn_encoder_cfg: an identity: the network looks at raw vectors.
        nn_reshaper_cfg: puts the neighbours of all patches in a row, which is done anyway.
        cond_stage_config: ``__is_unconditional__``: nothing but the start token stands before the codes.
        permuter_config: an identity: codes are in the order of rows.
        pkeep: 1: no code is replaced in training.

    Raises:
        ValueError: a model that no release has.
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
    """Logs which of CompVis' retrieval options were given: here a retriever stands beside the model, not in it."""
    names = [name for name, value in given.items() if value]
    if names:
        LOG.warning("%s: not read; neighbours come from the batch, or from a Retriever", ", ".join(names))


def flat_neighbours(neighbours: Tensor) -> Tensor:
    """Returns ``[B, K, D]`` for CompVis' ``[B, patches, K, D]``; the former is returned as it is."""
    return neighbours.flatten(1, -2)


def export_model(model: Mapping[str, Any], state: Mapping[str, Tensor], output: str | Path) -> Path:
    """Writes ``model.ckpt`` and ``config.yaml`` for CompVis' code and returns the path of the first.

    Args:
        model: target and params of any latent diffusion model or first stage, with retrieval or without.
        state: its weights, see ``ldm.checkpoint.choose_weights``.
        output: the folder.

    Raises:
        ValueError: something CompVis' code has no counterpart for.
    """
    if not str(model["target"]).startswith("rdm."):
        return export_compvis(model, state, output)
    if "transformer_config" in model["params"]:
        notes = _notes(model)
        model, state = with_plain_codes(model, state)
        return write_compvis({"model": _autoregressive_model(model, state)}, state, Path(output), notes)
    notes, model = _retrieval_model(model)
    state = dict(state)
    if not bool(state.get("unconditional_guidance_vex", torch.zeros(1)).any()):  # their code divides by its length
        state["unconditional_guidance_vex"] = torch.ones(*model["params"]["guidance_vex_shape"])
    return export_compvis(model, state, output, arguments=RETRIEVAL_ARGUMENTS, notes=notes)


def _retrieval_model(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns what a user of CompVis' code has to know, and the model under CompVis' name and arguments."""
    notes, params = _notes(model), dict(model["params"])
    params.pop("use_neighbours", None)
    unet = {name: value for name, value in params["unet_config"]["params"].items() if name != "legacy"}
    if unet.get("n_embed") is not None:
        raise ValueError(f"unet_config: n_embed is {unet['n_embed']}, expected none; CompVis' network is another one")
    width = unet["context_dim"]
    conditioner = params.pop("conditioner", None) or {}
    theirs = {
        "k_nn": conditioner.get("k", 4),
        "query_key": "clip_img_emb",
        "nn_key": "nn_embeddings",
        "retrieval_encoder_cfg": {"target": IDENTITIES[0]},
        "guidance_vex_shape": [width if isinstance(width, int) else width[0]],
        "cond_stage_key": "nixda",
        "p_uncond": params.pop("p_uncond", 0.0 if "k_nn" in params else 0.1),
    }
    check_network(params["unet_config"])
    params = {**theirs, **params, "conditioning_key": "retro_only", "cond_stage_config": UNCONDITIONAL}
    params["unet_config"] = {"target": UNET_TARGET, "params": unet}
    if not params.get("retrieval_cfg"):
        notes += "\nTheir scripts/rdm_sample.py wants a database of theirs too: retrieval_cfg and nn_memory in params."
    return notes, {**model, "target": "rdm.models.diffusion.ddpm.MinimalRETRODiffusion", "params": params}


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
        # Their model calls the encoder of this class, not of the interface, which gives no codes.
        "first_stage_config": {**first, "target": "ldm.models.autoencoder.VQModel"},
        "cond_stage_config": UNCONDITIONAL,
        **({"scheduler_config": scheduler} if scheduler.get("target") in SCHEDULERS else {}),
        **{name: params[name] for name in DATABASE_ARGUMENTS if params.get(name)},
    }
    target = "rdm.models.autoregression.transformer.LatentImageRETRO"
    rate = model.get("base_learning_rate", params.get("learning_rate", 3e-4))
    return {"base_learning_rate": rate, "target": target, "params": theirs}


def _notes(model: Mapping[str, Any]) -> str:
    """Returns what a user of CompVis' code has to know of a model that looks at neighbours.

    Raises:
        ValueError: it looks at none.
    """
    params = model["params"]
    if not params.get("use_neighbours", True):
        raise ValueError("use_neighbours is false, expected true; CompVis' code has no model without neighbours")
    notes, conditioner = "For CompVis' code; the null context is zeros.", params.get("conditioner") or {}
    if conditioner.get("normalize"):
        length = f"length {conditioner.get('scale', 1.0)}"
        notes += f"\nThe model was trained on vectors of {length}: bring every neighbour (and query) to it before."
        LOG.warning("the model looks at vectors of %s, which CompVis' code has to be given: see config.yaml", length)
    return notes


# What a pickle of numpy arrays, numbers and dictionaries names; none of it runs code. numpy 2 moved core to _core.
_ARRAYS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayReader(pickle.Unpickler):
    """Reads pickles of arrays and plain containers, and refuses whatever else they name."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a pickle names.

        Raises:
            UnpicklingError: anything that is not needed for arrays.
        """
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return super().find_class(module, name)


def read_nn_memory(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of CompVis' ``nn_memory`` files, most popular first, and how often each is somebody's neighbour.

    They are pickles of ``{"nn_memory": rows, "id_count": {row: count}}``; nothing in them is run.

    Args:
        file: such as ``in_imagenet.p``.

    Returns:
        Rows ``[M] int64`` and counts ``[M] int64``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, asks for more than arrays, or is none of these files.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}; name one of CompVis' nn_memory files")
    try:
        with path.open("rb") as stream:
            content = _ArrayReader(stream).load()
        rows = np.asarray(content["nn_memory"], dtype=np.int64).ravel()
        return rows, np.array([content["id_count"][int(row)] for row in rows], dtype=np.int64)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} was refused: {error}; nothing of it was run") from error
    except (EOFError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no complete nn_memory of CompVis ({reason}); fetch it again") from error
