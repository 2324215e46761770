"""Exports latent diffusion models to folders for diffusers, and imports such folders, without needing diffusers.

``unet/`` is a ``UNet2DConditionModel``, ``vqvae/`` a ``VQModel`` or ``vae/`` an ``AutoencoderKL``, ``scheduler/`` a
``DDIMScheduler``. The folder also holds this project's ``config.yaml``, and ``other.safetensors`` with weights that
have no place in these (a text encoder, a learned variance), so that importing it is exact. Without these two, the
config is derived from diffusers' own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import check_weights, read_weights, write_weights
from ldm.config import read_config, write_config
from ldm.convert.autoencoder import (
    KL,
    TARGETS,
    first_stage_from_diffusers,
    first_stage_names,
    first_stage_to_diffusers,
    with_plain_codes,
)
from ldm.convert.unet import Names, check_values, network_class, unet_from_diffusers, unet_names, unet_to_diffusers
from ldm.files import read_json, write_json
from ldm.run import check_described, described_model, without_paths

LOG = logging.getLogger(__name__)
UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
WEIGHTS, OTHER = "diffusion_pytorch_model.safetensors", "other.safetensors"
SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear"}  # ours and diffusers' names of the same schedules
READ_SCHEDULES = {theirs: ours for ours, theirs in SCHEDULES.items()} | {"squaredcos_cap_v2": "cosine"}
OLDER_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # in autoencoders
REMEDY = "expected a folder that diffusers wrote"
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def export_diffusers(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    output: str | Path,
    scale_factor: float = 1.0,
    further: bool = False,
) -> Path:
    """Writes a model as a folder for diffusers and returns the folder.

    Args:
        config: the config of a run, with ``model``.
        state: its weights by name, without a running average.
        output: the folder.
        scale_factor: factor of the latents, for a first stage alone; a diffusion model has its own.
        further: write modules of the U-Net that diffusers' class lacks into folders of their own, which hold weights
            only. The U-Net's own input then has channels for what these modules make.

    Raises:
        ValueError: diffusers has no counterpart for an option, or the weights do not fit the config.
    """
    output = Path(output)
    model, state = with_plain_codes(config["model"], state)
    params = model["params"]
    if model["target"] in TARGETS:
        _write_first_stage(output, model, state, scale_factor)
        write_config(output / "config.yaml", {**config, "model": model})
        return output
    if "first_stage_config" not in params or "unet_config" not in params:
        raise ValueError(f"got {model['target']}, expected a latent diffusion model or a first stage; no counterpart")
    modules = network_class(params["unet_config"], further).further
    unet, first = params["unet_config"]["params"], params["first_stage_config"]
    described = unet_to_diffusers(unet)
    built: Any = check_described(model, state, "the run's checkpoint")
    if built.model.conditioning_key != ("hybrid" if modules else "crossattn"):
        raise ValueError(f"conditioning_key is '{built.model.conditioning_key}', expected crossattn; no counterpart")
    if beside := [name for name, _ in built.model.named_children() if name != "diffusion_model"]:
        raise ValueError(f"the model has {', '.join(beside)} beside its U-Net, expected none; no counterpart")
    schedule = {name for name, value in built.named_buffers() if not value.is_meta}
    scale = float(state.get("scale_factor", params.get("scale_factor", 1.0)))
    _write_first_stage(output, first, _below(state, FIRST_STAGE), scale)
    described["in_channels"] = built.model.diffusion_model.input_blocks[0][0].in_channels
    write_json(output / "unet" / "config.json", described)
    network = _below(state, UNET)
    for name in modules:
        write_weights(output / name / WEIGHTS, _below(network, f"{name}."))
        network = {key: value for key, value in network.items() if not key.startswith(f"{name}.")}
    write_weights(output / "unet" / WEIGHTS, renamed(network, unet_names(unet)))
    write_json(output / "scheduler" / "scheduler_config.json", scheduler_to_diffusers(params, state["betas"]))
    rest = {name: tensor for name, tensor in state.items() if not name.startswith((UNET, FIRST_STAGE))}
    rest = {name: tensor for name, tensor in rest.items() if name not in schedule | {"scale_factor"}}
    if rest:
        LOG.warning("%d tensors have no place in diffusers and are in %s, first %s", len(rest), OTHER, next(iter(rest)))
        write_weights(output / OTHER, rest)
    write_config(output / "config.yaml", {**config, "model": {**model, "params": without_paths(params)}})
    return output


def import_diffusers(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config and the weights of a folder written by diffusers or by :func:`export_diffusers`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: this project has no counterpart for a class or an option, or the weights do not fit.
    """
    folder = Path(folder)
    if (folder / "config.yaml").is_file():
        config = read_config([folder / "config.yaml"])
    else:
        config = {"model": _describe(folder)}
    if not isinstance(model := config.get("model"), Mapping):
        raise ValueError(f"{folder / 'config.yaml'} describes no model; leave it out to read diffusers' own configs")
    built, params = described_model(model), model.get("params") or {}
    if model["target"] in TARGETS:
        return config, _read_part(_first_stage_folder(folder), built, first_stage_names(params["ddconfig"]))
    if not {"unet_config", "first_stage_config"} <= params.keys():
        raise ValueError(f"got {model['target']}, expected a latent diffusion model or a first stage; no counterpart")
    state = {name: value for name, value in built.state_dict().items() if not value.is_meta}
    parts: dict[str, tuple[str, Names | None]] = {
        UNET: ("unet", unet_names(params["unet_config"]["params"])),
        FIRST_STAGE: ("", first_stage_names(params["first_stage_config"]["params"]["ddconfig"])),
    }
    modules = network_class(params["unet_config"], further=True).further
    parts |= {f"{UNET}{name}.": (name, None) for name in modules}
    for begin, (name, names) in parts.items():
        part = built.get_submodule(begin.removesuffix("."))
        beside = modules if begin == UNET else ()
        found = _read_part(folder / name if name else _first_stage_folder(folder), part, names, beside)
        state |= {begin + key: tensor for key, tensor in found.items()}
    if (folder / OTHER).is_file():
        state |= read_weights(folder / OTHER)
    if params.get("scale_by_std"):  # the factor is measured in training and stored with the weights
        state["scale_factor"] = torch.tensor(scale_of_diffusers(folder))
    check_described(model, state, folder)
    return config, state


def scale_of_diffusers(folder: str | Path) -> float:
    """Returns the factor by which a first stage's latents are multiplied, for a folder written by diffusers."""
    return float(read_json(_first_stage_folder(Path(folder)) / "config.json", REMEDY).get("scaling_factor", 0.18215))


def scheduler_to_diffusers(params: Mapping[str, Any], betas: Tensor) -> dict[str, Any]:
    """Returns the config of a ``DDIMScheduler`` whose steps are those of this project's ``ddim``.

    Args:
        params: of a diffusion model.
        betas: ``[T] float32``, written out where the schedule has no name in diffusers.
    """
    name = params.get("beta_schedule", "linear")
    found = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": len(betas),
        "beta_schedule": SCHEDULES.get(name, "linear"),
        "beta_start": float(params.get("linear_start", 1e-4)),
        "beta_end": float(params.get("linear_end", 2e-2)),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "prediction_type": PREDICTIONS[params.get("parameterization", "eps")],
    }
    if name not in SCHEDULES or params.get("given_betas") is not None:
        found["trained_betas"] = [float(beta) for beta in betas]
    return found


def scheduler_from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a diffusion model's arguments for schedule and parameterization, from the config of any scheduler.

    Raises:
        ValueError: this project has no counterpart for the schedule or the prediction.
    """
    check_values("scheduler_config.json", config, {"rescale_betas_zero_snr": (False,)})
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in predictions:
        raise ValueError(f"scheduler_config.json: prediction_type is '{prediction}', expected {', '.join(predictions)}")
    found = {"parameterization": predictions[prediction], "timesteps": config.get("num_train_timesteps", 1000)}
    if config.get("trained_betas") is not None:
        return {**found, "given_betas": list(config["trained_betas"])}
    name = config.get("beta_schedule", "linear")
    if name not in READ_SCHEDULES:
        raise ValueError(
            f"scheduler_config.json: beta_schedule is '{name}', expected one of {', '.join(READ_SCHEDULES)}"
        )
    ends = {"linear_start": config.get("beta_start", 1e-4), "linear_end": config.get("beta_end", 2e-2)}
    return {**found, "beta_schedule": READ_SCHEDULES[name], **ends}


def _describe(folder: Path) -> dict[str, Any]:
    """Returns target and params of the model in a folder without this project's ``config.yaml``."""
    stage = read_json(_first_stage_folder(folder) / "config.json", REMEDY)
    first = first_stage_from_diffusers(stage)
    if not (folder / "unet").is_dir():
        return first
    unet = unet_from_diffusers(read_json(folder / "unet" / "config.json", REMEDY))
    params = {
        **scheduler_from_diffusers(read_json(folder / "scheduler" / "scheduler_config.json", REMEDY)),
        "use_ema": False,
        "conditioning_key": "crossattn",
        "image_size": unet["image_size"],
        "channels": unet["in_channels"],
        "scale_factor": scale_of_diffusers(folder),
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": first,
        "cond_stage_config": {"target": "torch.nn.Identity"},
    }
    return {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}


def _first_stage_folder(folder: Path) -> Path:
    found = [folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{folder} holds neither vae/ nor vqvae/; expected a folder that diffusers wrote")
    return found[0]


def _write_first_stage(output: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], scale: float) -> None:
    described = first_stage_to_diffusers(config, scale)
    folder = output / ("vae" if described["_class_name"] == KL else "vqvae")
    write_json(folder / "config.json", described)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
    write_weights(folder / WEIGHTS, renamed(kept, first_stage_names(config["params"]["ddconfig"])))


def _below(state: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {name.removeprefix(begin): tensor for name, tensor in state.items() if name.startswith(begin)}


def _their_names(names: Names, own: Iterator[str]) -> dict[str, str]:
    """Returns diffusers' name for each weight name of this project."""
    found = {}
    for name in own:
        begin = name
        while begin and begin not in names:
            begin = begin.rpartition(".")[0]
        if not begin:
            raise ValueError(f"'{name}' has no counterpart in diffusers")
        found[name] = names[begin] + name.removeprefix(begin)
    return found


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Returns weights under diffusers' names, where the 1x1 convolutions of attention are linear layers."""
    found = {}
    for name, theirs in _their_names(names, iter(state)).items():
        tensor = state[name]
        linear = ".to_" in theirs and tensor.ndim == 4
        found[theirs] = tensor.flatten(1) if linear else tensor
    return found


def _read_part(folder: Path, own: nn.Module, names: Names | None, beside: Sequence[str] = ()) -> dict[str, Tensor]:
    """Returns a network's weights with the names and shapes of this project.

    Args:
        folder: where they are.
        own: the network.
        names: prefixes of this project's names with those of diffusers; None for the same names.
        beside: modules of the network whose weights are elsewhere.

    Raises:
        ValueError: a weight is missing, is superfluous, or has another size.
    """
    file = next((folder / name for name in (WEIGHTS, "diffusion_pytorch_model.bin") if (folder / name).is_file()), None)
    state = read_weights(file or folder / WEIGHTS)
    left_out = ("loss.", *(f"{name}." for name in beside))
    shapes = {name: value.shape for name, value in own.state_dict().items() if not name.startswith(left_out)}
    theirs = {name: name for name in shapes} if names is None else _their_names(names, iter(shapes))
    known = {other: name for name, other in theirs.items()}
    for new, old in OLDER_ATTENTION.items():
        known |= {other.replace(f".{new}.", f".{old}."): name for other, name in known.items()}
    found = {known.get(name, name): tensor for name, tensor in state.items()}
    for name, shape in shapes.items():
        if name in found and found[name].numel() == shape.numel():
            found[name] = found[name].reshape(shape)
    check_weights(own, found, source=file or folder, allow=[f"{begin}*" for begin in left_out])
    return found
