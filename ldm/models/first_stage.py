"""Reads a first stage to use it: from a run, a shipped folder, or a released checkpoint beside its config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import average_as_weights, load_weights, read_weights
from ldm.config import read_config
from ldm.files import located
from ldm.models.tiling import encode_tiled
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.parallel import randn
from ldm.run import weights_of
from ldm.util import check_target, instantiate_from_config

INSIDE = "first_stage_model."
LATENT = "latent"  # key of a batch for the latents of its images, without a scale factor


@dataclass(frozen=True)
class FirstStage:
    """A first stage with where it came from.

    Attributes:
        model: in evaluation mode, frozen, holding its averaged weights.
        config: the whole config it was found in.
        file: its weights.
    """

    model: Any
    config: Mapping[str, Any]
    file: Path

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures it was made for."""
        return int(_stage_config(self.config)["params"]["ddconfig"]["resolution"])


def frozen_first_stage(config: Mapping[str, Any]) -> Any:
    """Returns the first stage of a ``{target, params}``, frozen and in evaluation mode.

    If it was trained with a running average, its weights are the averaged ones.
    """
    check_target(config, "first_stage_config")
    stage = instantiate_from_config(config).eval().requires_grad_(False)
    if getattr(stage, "model_ema", None) is not None:
        stage.model_ema.copy_to(stage)
        stage.model_ema = None
    return stage


def encode(
    stage: Any, image: Tensor, generator: torch.Generator | None = None, tile: int | str | None = None
) -> Tensor:
    """Returns the latent ``[B, C, h, w]`` of images, without a scale factor.

    Args:
        stage: the first stage.
        image: ``[B, 3, H, W]`` in [-1, 1].
        generator: draws from a KL first stage's posterior, in training; its mode without one.
        tile: see :func:`ldm.models.tiling.encode_tiled`.
    """
    encoded = encode_tiled(stage, image, tile)
    if isinstance(encoded, DiagonalGaussianDistribution):
        return encoded.mode() if generator is None else encoded.sample(randn(encoded.mean.shape, generator))
    return encoded


def fingerprint(stage: nn.Module) -> str:
    """Returns the SHA-256 of the names and values of a first stage's weights, whatever their file."""
    digest = hashlib.sha256()
    for name, value in sorted(stage.state_dict().items()):
        if not name.startswith("loss."):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_first_stage(path: str | Path, config: str | Path | None = None) -> FirstStage:
    """Returns the first stage at a path, on the GPU if there is one.

    Args:
        path: a run folder, a folder with ``model.safetensors`` or ``model.ckpt``, or a file of weights. For a latent
            diffusion model, this is the first stage inside it.
        config: the config of a file of weights; by default the ``config.yaml`` of its folder or its run.

    Raises:
        FileNotFoundError: there are no weights, or no config.
        ValueError: the weights do not fit the config.
    """
    path = located(path)
    file = weights_of(path) if path.is_dir() or not path.suffix else path
    if not file.is_file():
        raise FileNotFoundError(f"no weights of a first stage at {file}; train one with main.py or give another path")
    whole = read_config([config or _config_beside(file)])
    found = _stage_config(whole)
    dropped = ("lossconfig", "ckpt_path", "ignore_keys", "use_ema")
    params = {name: value for name, value in found["params"].items() if name not in dropped}
    model = instantiate_from_config({"target": found["target"], "params": params}, lossconfig=None)
    state = average_as_weights(read_weights(file))
    allow = ["loss.*", "colorize"]
    if any(name.startswith(INSIDE) for name in state):
        state = {name.removeprefix(INSIDE): value for name, value in state.items() if name.startswith(INSIDE)}
        allow.append("model_ema.*")  # a model uses the weights of its first stage as they are
    load_weights(model, state, source=file, allow=allow)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return FirstStage(model.eval().requires_grad_(False).to(device), whole, file)


def _config_beside(file: Path) -> Path:
    for folder in (file.parent, file.parent.parent):
        for found in (folder / "config.yaml", *sorted((folder / "configs").glob("*-project.yaml"), reverse=True)):
            if found.is_file():
                return found
    raise FileNotFoundError(f"no config.yaml beside {file}; give its config with --config")


def _stage_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the ``{target, params}`` of the first stage in a config, which is the model or a part of it.

    Raises:
        ValueError: the config has no first stage.
    """
    model = config.get("model", config)
    stage = (model.get("params") or {}).get("first_stage_config", model)
    if "ddconfig" not in (stage.get("params") or {}):
        raise ValueError(f"the config's model is {model.get('target')}, expected a first stage, or one inside")
    return stage
