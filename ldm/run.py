"""A run: the folder that training writes, with its config and its weights; and the folder that it is exported to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import check_weights, choose_weights, read_metadata, read_weights, write_weights
from ldm.config import read_config
from ldm.files import atomic_path, read_json
from ldm.util import check_mapping, instantiate_from_config

# Beside the network: losses and the average are only trained with; the cond stage may bring weights of its own.
BESIDE = ("loss.*", "first_stage_model.loss.*", "model_ema.*", "cond_stage_model.*")


def read_run(
    run: str | Path, checkpoint: str | Path | None = None, weights: str = "average"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and weights of a run or of a shipped folder, checked against each other.

    Args:
        run: holds ``config.yaml`` and ``checkpoints/last.ckpt``, ``model.safetensors`` or ``model.ckpt``.
        checkpoint: another file of weights.
        weights: see :func:`choose_weights`.

    Raises:
        FileNotFoundError: no config or no weights.
        ValueError: a damaged checkpoint, or weights that it does not hold; weights of another architecture than the
            config describes.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"no config.yaml in {run}; expected a run folder that main.py made")
    file = Path(checkpoint or weights_of(run))
    config, state = read_config([run / "config.yaml"]), choose_weights(read_weights(file), weights)
    if "model" not in config:
        raise ValueError(f"{run / 'config.yaml'} describes no model; got {', '.join(config) or 'nothing'}")
    check_described(config["model"], state, file)
    return config, state


def weights_of(run: str | Path) -> Path:
    """Returns where the weights of a run or of a shipped folder are, or would be."""
    names = ("checkpoints/last.ckpt", "model.safetensors", "model.ckpt")
    return next((Path(run) / name for name in names if (Path(run) / name).is_file()), Path(run) / names[0])


def described_model(model: Mapping[str, Any]) -> nn.Module:
    """Returns the model of a config on the meta device: names and shapes, without reading a file of weights.

    Numbers that are no weights (the noise schedule) are there. Losses and the cond stage are left out.

    Raises:
        ValueError: target or params are wrong, or not trusted.
    """
    if not isinstance(model, Mapping):
        raise ValueError(f"model: expected a mapping with a 'target' key, got {model!r}")
    check_mapping(model.get("params"), f"{model.get('target')}: params")
    params = without_paths(model.get("params") or {})
    if "unet_config" in params:
        params["use_ema"] = False
    first = params.get("first_stage_config")
    for part in (params, first["params"] if isinstance(first, Mapping) else {}):
        for name in ("lossconfig", "cond_stage_config"):
            if isinstance(part.get(name), Mapping):
                part[name] = {"target": "torch.nn.Identity"}
    with torch.device("meta"):
        built = instantiate_from_config({**model, "params": params})
    if not isinstance(built, nn.Module):
        raise ValueError(f"model: got target {model['target']}, expected that of a network")
    return built


def check_described(model: Mapping[str, Any], state: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    """Checks that weights are those of a config's model, and returns that model, see :func:`described_model`.

    Raises:
        ValueError: a wrong config, or weights of another architecture.
    """
    built = described_model(model)
    check_weights(built, state, source=source, allow=(*getattr(built, "optional_names", ()), *BESIDE))
    return built


def without_paths(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns params that name no file of weights, neither their own nor the first stage's.

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
    """Writes ``model.safetensors`` and ``config.yaml`` of a run into a folder, and returns the weights' path.

    Losses and optimisers stay behind. With ``half``, networks are stored in float16, and what that cannot hold and the
    module's own numbers (noise schedule, scale factor, decay) in float32. For ``weights`` see :func:`choose_weights`.
    What a first stage's validation measured of its latents (``latents.json``) becomes metadata of the weights and a
    comment in the config.

    Raises:
        FileNotFoundError: the run has no config or checkpoint.
        ValueError: see :func:`read_run`.
    """
    run, output = Path(run), Path(output)
    _, state = read_run(run, checkpoint, weights)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
    if half:
        numbers = {name for name in kept if "." not in name or name == "model_ema.decay"}
        kept = {n: t if n in numbers else _halved(t) for n, t in kept.items()}
    measured = measured_latents(run)
    write_weights(output / "model.safetensors", kept, metadata=measured)
    comment = "# Measured: " + ", ".join(f"{name} {value:.6g}" for name, value in measured.items()) + "\n"
    with atomic_path(output / "config.yaml") as temporary:
        text = (run / "config.yaml").read_text(encoding="utf-8").removeprefix(comment)
        temporary.write_text((comment if measured else "") + text, encoding="utf-8")
    return output / "model.safetensors"


def measured_latents(run: str | Path) -> dict[str, float]:
    """Returns what a first stage's validation measured of its latents, of a run or of the folder it was exported to.

    Returns:
        ``latent_mean``, ``latent_std``, the ``scale_factor`` that makes the latter 1, and the ``step`` of the
        validation; nothing where nothing was measured.

    Raises:
        ValueError: the run's file of them is damaged.
    """
    file, weights = Path(run) / "latents.json", weights_of(run)
    if file.is_file():
        return read_json(file, "delete it or validate again")
    if weights.suffix != ".safetensors":
        return {}
    found = read_metadata(weights)
    return {n: json.loads(found[n]) for n in ("latent_mean", "latent_std", "scale_factor", "step") if n in found}


def _halved(tensor: Tensor) -> Tensor:
    """Returns a tensor of floating-point numbers in float16, unless one of them is too large for it."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor
