"""Reads and exports runs: folders with a config and weights, which training writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import check_weights, choose_weights, read_metadata, read_weights, write_weights
from ldm.config import read_config
from ldm.files import atomic_path, located, read_json, read_text
from ldm.util import check_mapping, check_target, instantiate_from_config

# Names that a checkpoint may lack: losses and the running average are only used in training, and the cond stage may
# load its weights from elsewhere.
CLASS_NAMES = "classes.txt"  # the names of classes, one in a line, in the order of their numbers
BESIDE = ("loss.*", "first_stage_model.loss.*", "model_ema.*", "cond_stage_model.*")


def read_run(
    run: str | Path, checkpoint: str | Path | None = None, weights: str = "average"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config and the weights of a run or of an exported folder, checked against each other.

    Args:
        run: folder with ``config.yaml`` and ``checkpoints/last.ckpt``, ``model.safetensors`` or ``model.ckpt``.
        checkpoint: file of weights to use instead.
        weights: see :func:`choose_weights`.

    Raises:
        FileNotFoundError: there is no config, or there are no weights.
        ValueError: the checkpoint is damaged, lacks the wanted weights, or does not fit the config.
    """
    run = located(run)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"no config.yaml in {run}; expected a run folder that main.py made")
    file = Path(checkpoint or weights_of(run))
    config, state = read_config([run / "config.yaml"]), choose_weights(read_weights(file), weights)
    if "model" not in config:
        raise ValueError(f"{run / 'config.yaml'} describes no model; got {', '.join(config) or 'nothing'}")
    check_described(config["model"], state, file)
    return config, state


def weights_of(run: str | Path) -> Path:
    """Returns the path of the weights of a run or of an exported folder, whether it exists or not."""
    names = ("checkpoints/last.ckpt", "model.safetensors", "model.ckpt")
    run = located(run)
    return next((run / name for name in names if (run / name).is_file()), run / names[0])


def described_model(model: Mapping[str, Any]) -> nn.Module:
    """Returns the model of a config on the meta device, with names and shapes, but without weights.

    Buffers with known values, such as the noise schedule, hold them. Losses and the cond stage are left out.

    Raises:
        ValueError: the target or the params are wrong, or the target is not trusted.
    """
    check_target(model, "model")
    check_mapping(model.get("params"), f"{model.get('target')}: params")
    params = without_paths(model.get("params") or {})
    if "unet_config" in params:
        params["use_ema"] = False
    first = params.get("first_stage_config")
    for part in (params, first["params"] if isinstance(first, Mapping) else {}):
        for name in ("lossconfig", "cond_stage_config"):
            if isinstance(part.get(name), Mapping):
                part[name] = {"target": "torch.nn.Identity"}
                part.pop("p_uncond", None)  # without a cond stage that it needs
    with torch.device("meta"):
        built = instantiate_from_config({**model, "params": params})
    if not isinstance(built, nn.Module):
        raise ValueError(f"model: got target {model['target']}, expected that of a network")
    return built


def check_described(model: Mapping[str, Any], state: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    """Checks that weights fit a config's model, and returns that model as :func:`described_model` does.

    Raises:
        ValueError: the config is wrong, or the weights do not fit it.
    """
    built = described_model(model)
    check_weights(built, state, source=source, allow=optional_of(built))
    return built


def optional_of(model: nn.Module) -> tuple[str, ...]:
    """Returns the patterns of names that a checkpoint of a described model may lack or have in excess."""
    return (*getattr(model, "optional_names", ()), *BESIDE)


def without_paths(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns params without the names of weight files, neither the model's nor the first stage's.

    Raises:
        ValueError: the first stage's params are no mapping.
    """
    found = {name: value for name, value in params.items() if name not in ("ckpt_path", "ignore_keys")}
    first = found.get("first_stage_config")
    if isinstance(first, Mapping):
        check_mapping(first.get("params"), "first_stage_config: params")
        found["first_stage_config"] = {**first, "params": without_paths(first.get("params") or {})}
    return found


def export_run(
    run: str | Path,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    half: bool = True,
    weights: str = "average",
) -> Path:
    """Writes ``model.safetensors`` and ``config.yaml`` of a run into a folder, and returns the path of the weights.

    Losses and optimisers are left out. With ``half``, networks are stored in float16, except values that are too large
    for it; the model's own numbers (noise schedule, scale factor, decay) stay in float32. For ``weights`` see
    :func:`choose_weights`. The statistics of a first stage's latents (``latents.json``) become metadata of the weights
    and a comment in the config.

    Raises:
        FileNotFoundError: the run has no config or checkpoint.
        ValueError: see :func:`read_run`.
    """
    run, output = located(run), Path(output)
    _, state = read_run(run, checkpoint, weights)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
    if half:
        numbers = {name for name in kept if "." not in name or name == "model_ema.decay"}
        kept = {n: t if n in numbers else _halved(t) for n, t in kept.items()}
    measured = measured_latents(run)
    copy_class_names(run, output)
    write_weights(output / "model.safetensors", kept, metadata=measured)
    comment = "# Measured: " + ", ".join(f"{name} {value:.6g}" for name, value in measured.items()) + "\n"
    with atomic_path(output / "config.yaml") as temporary:
        text = (run / "config.yaml").read_text(encoding="utf-8").removeprefix(comment)
        temporary.write_text((comment if measured else "") + text, encoding="utf-8")
    return output / "model.safetensors"


def read_class_names(run: str | Path) -> list[str]:
    """Returns the names of a model's classes in the order of their numbers, of a run or of an exported folder.

    It is empty for a model that knows no classes, or none by name.
    """
    file = located(run) / CLASS_NAMES
    return read_text(file).splitlines() if file.is_file() else []


def write_class_names(run: str | Path, names: Sequence[str]) -> None:
    """Writes the names of a model's classes, in the order of their numbers, into a run or an exported folder."""
    with atomic_path(Path(run) / CLASS_NAMES) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def copy_class_names(run: str | Path, output: str | Path) -> None:
    """Writes the names of the classes of a run, if it has any, into an exported folder."""
    if names := read_class_names(run):
        write_class_names(output, names)


def measured_latents(run: str | Path) -> dict[str, float]:
    """Returns the statistics of a first stage's latents, of a run or of an exported folder.

    Returns:
        ``latent_mean``, ``latent_std``, the ``scale_factor`` that makes the standard deviation 1, and the ``step`` of
        the validation that measured them; an empty dict if there was none.

    Raises:
        ValueError: the run's ``latents.json`` is damaged.
    """
    file, weights = located(run) / "latents.json", weights_of(run)
    if file.is_file():
        return read_json(file, "delete it or validate again")
    if weights.suffix != ".safetensors":
        return {}
    found = read_metadata(weights)
    return {n: json.loads(found[n]) for n in ("latent_mean", "latent_std", "scale_factor", "step") if n in found}


def _halved(tensor: Tensor) -> Tensor:
    """Returns a floating-point tensor in float16, or unchanged if one of its values is too large for that."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor
