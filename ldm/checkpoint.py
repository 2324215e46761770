"""The only place that reads or writes weights: safe, strict, atomic; ``.ckpt`` and ``.safetensors``."""

from __future__ import annotations

import codecs
import fnmatch
import json
import logging
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.config import read_config
from ldm.files import read_json
from ldm.util import atomic_path, check_mapping, instantiate_from_config

LOG = logging.getLogger(__name__)
# What torch.load raises on a file that is cut short or no checkpoint at all.
DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    struct.error,
)
# Beside the network: losses and the average are only trained with; the cond stage may bring weights of its own.
BESIDE = ("loss.*", "first_stage_model.loss.*", "model_ema.*", "cond_stage_model.*")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by name, on the CPU, in the type they are stored in.

    Args:
        path: a ``.safetensors`` or a ``.ckpt`` / ``.pt`` / ``.pth`` / ``.bin`` file; the tensors of a Lightning
            checkpoint are those under ``state_dict``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, truncated, or a pickle that asks for more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one with main.py or give another path")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file ({error})") from error
    content = _read_pickle(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict of tensors")
    return dict(state)


def _harmless() -> list[Any]:
    """Returns what checkpoints of CompVis hold beside tensors and plain containers, none of which can run code.

    Their callbacks' states lie under the callback's class, and a cosine schedule's learning rates are numpy's numbers.
    """
    from pytorch_lightning.callbacks import ModelCheckpoint

    scalar = np.float64(0).__reduce__()[0]
    places = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # before and since numpy 2
    return [ModelCheckpoint, *places, codecs.encode, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")]


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # what torch has to say of a strange pickle, the error says
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {named[1]}" if named else "it holds more than tensors"
        raise ValueError(
            f"{path} was refused: {reason}, which could run code, and nothing of it was run; if you trust it, load it "
            "elsewhere and save its state_dict alone"
        ) from error
    except DAMAGED as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a complete checkpoint ({reason})") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the text metadata of a ``.safetensors`` file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def write_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes tensors as ``.safetensors``, completely or not at all.

    Args:
        path: target; its directory is made.
        state: tensors by name; shared storage is copied.
        dtype: floating-point tensors are converted to it; ``None`` keeps theirs.
        metadata: values are stored as JSON text.
    """
    tensors = {}
    for name, tensor in state.items():
        convert = dtype is not None and tensor.is_floating_point()
        tensors[name] = tensor.detach().to("cpu", dtype if convert else tensor.dtype, copy=True).contiguous()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **texts})


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path = "checkpoint",
    allow: Sequence[str] = (),
) -> None:
    """Loads ``state`` into ``module``, strictly.

    Args:
        module: receives the weights.
        state: tensors by name; float16 is widened to the module's own type.
        source: named in errors.
        allow: patterns (``fnmatch``) of names that may be missing from or superfluous in ``state``.

    Raises:
        ValueError: a name outside ``allow`` is missing or unexpected, or a shape differs.
    """
    check_weights(module, state, source=source, allow=allow)
    own = module.state_dict()
    module.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def check_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path = "checkpoint",
    allow: Sequence[str] = (),
) -> None:
    """Checks that ``state`` fits ``module``, which may be on the meta device; see :func:`load_weights`.

    Raises:
        ValueError: a name outside ``allow`` is missing or unexpected, or a shape differs.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not _matches(name, allow)]
    unexpected = [name for name in state if name not in own and not _matches(name, allow)]
    wrong = [
        f"{n} {tuple(state[n].shape)} != {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or unexpected or wrong:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
        found = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            for what, names in parts
            if names
        )
        raise ValueError(f"{source} does not fit {type(module).__name__}: {found}")


def average_as_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with the running average in place of the raw weights, and without the average's own names.

    A state without an average is returned as it is.
    """
    plain = {name: value for name, value in state.items() if not name.startswith("model_ema.")}
    for name in plain:
        average = "model_ema." + name.removeprefix("model.").replace(".", "")
        if average in state:
            plain[name] = state[average]
    return plain


def choose_weights(state: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint with the weights that were asked for.

    Args:
        state: tensors by name.
        which: ``average`` (the running average as the weights; the weights where there is none), ``raw`` (the weights)
            or ``both`` (the weights, and the average under its own names).

    Raises:
        ValueError: another word, or ``both`` of a checkpoint without an average.
    """
    averages = {name for name in state if name.startswith("model_ema.")}
    if which == "average":
        return average_as_weights(state)
    if which == "raw":
        return {name: value for name, value in state.items() if name not in averages}
    if which != "both":
        raise ValueError(f"weights: got '{which}', expected average, raw or both")
    if not averages:
        raise ValueError("weights: got both, but the checkpoint has no running average; ask for average or raw")
    return dict(state)


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


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes tensors under ``state_dict`` of a ``.ckpt``, as CompVis and Lightning do, completely or not at all.

    The step beside them, which CompVis' scripts name folders by, is 0: without optimisers, training starts anew.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        torch.save({"state_dict": tensors, "global_step": 0}, temporary)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
