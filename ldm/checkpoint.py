"""Reads and writes weights, as ``.ckpt`` or ``.safetensors``; the only module that does. No pickle can run code."""

from __future__ import annotations

import codecs
import fnmatch
import hashlib
import json
import logging
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.downloads import instead_of_weights, is_archive
from ldm.files import atomic_path, located

LOG = logging.getLogger(__name__)
# The errors that torch.load raises for a truncated file, or for one that is no checkpoint.
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
AGAIN = "download it again, or give another file"
SUM = "tensors_sha256"  # in the metadata of a safetensors file
DTYPES = {  # the names of dtypes in safetensors files
    **{f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{"BF16": torch.bfloat16, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"C64": torch.complex64, "F8_E8M0": torch.float8_e8m0fnu},
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by name, on the CPU and in their stored dtype.

    The numbers of a ``.ckpt`` stay in the file and are read when they are used, so that optimiser states in it take no
    memory. Until they are copied into a module, the file must not be written over; one that replaces it does no harm.

    Args:
        path: a ``.safetensors`` or a ``.ckpt`` / ``.pt`` / ``.pth`` / ``.bin`` file; of a Lightning checkpoint, the
            tensors under ``state_dict`` are returned. Tensors within containers have the names of these before their
            own, as in ``image_proj.proj.weight``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, is truncated, does not have the checksum that :func:`write_weights`
            stored, or names more than tensors and plain containers.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                expected = (file.metadata() or {}).get(SUM)
        except SafetensorError as error:
            raise _incomplete_safetensors(path, error) from error
        if expected is not None and tensors_hash(state) != expected:
            raise ValueError(f"{path} is damaged: its tensors do not have the checksum {expected[:12]}; {AGAIN}")
        return state
    return _state_in(_read_pickle(path), path)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds, without its numbers.

    Attributes:
        tensors: the weights by name, on the meta device: shapes and dtypes only.
        others: the other entries of the file, such as ``epoch`` and ``optimizer_states``; tensors in them are on the
            meta device, too.
    """

    tensors: dict[str, Tensor]
    others: dict[str, Any]


def read_contents(path: str | Path) -> Contents:
    """Returns what a checkpoint holds, without reading its numbers, unless it is older than torch 1.6.

    For arguments and errors see :func:`read_weights`.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: _described(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
                return Contents(tensors, _texts(file))
        except SafetensorError as error:
            raise _incomplete_safetensors(path, error) from error
    content = _read_pickle(path, "meta" if is_archive(path) else "cpu")
    state = {name: tensor.to("meta") for name, tensor in _state_in(content, path).items()}
    return Contents(
        state, {} if "state_dict" not in content else {n: v for n, v in content.items() if n != "state_dict"}
    )


def _described(path: Path, name: str, part: Any) -> Tensor:
    """Returns a tensor of a safetensors file on the meta device.

    Raises:
        ValueError: it has a dtype that torch has not.
    """
    if (kind := part.get_dtype()) not in DTYPES:
        raise ValueError(f"{path}: got {name} of dtype {kind}, expected one of {', '.join(DTYPES)}; convert it")
    return torch.empty(part.get_shape(), dtype=DTYPES[kind], device="meta")


def _existing(path: str | Path) -> Path:
    path = located(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train one with main.py or give another path")
    return path


def _state_in(content: Any, path: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if isinstance(state, Mapping) and all(isinstance(value, Mapping) for value in state.values()):
        state = {f"{part}.{name}": tensor for part, held in state.items() for name, tensor in held.items()}
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict of tensors, expected weights by their names; give another file")
    return dict(state)


def _incomplete_safetensors(path: Path, error: SafetensorError) -> ValueError:
    return ValueError(f"{path} is not a complete safetensors file ({instead_of_weights(path) or f'{error}; {AGAIN}'})")


def _harmless() -> list[Any]:
    """Returns further classes that CompVis' checkpoints contain, none of which can run code.

    The states of callbacks have the callback's class as their key, and a cosine schedule's learning rates are numpy
    scalars.
    """
    from pytorch_lightning.callbacks import ModelCheckpoint

    scalar = np.float64(0).__reduce__()[0]
    places = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # before and since numpy 2
    return [ModelCheckpoint, *places, codecs.encode, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd")]


def _read_pickle(path: Path, device: str = "cpu") -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # the error below says what torch warns of
            mapped = device == "cpu" and is_archive(path)
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if other := instead_of_weights(path):
            raise ValueError(f"{path} is not a complete checkpoint ({other})") from error
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {named[1]}" if named else "it holds more than tensors"
        raise ValueError(
            f"{path} was refused: {reason}, which could run code, and nothing of it was run; if you trust it, load it "
            "elsewhere and save its state_dict alone"
        ) from error
    except DAMAGED as error:
        said = "" if isinstance(error, LookupError) else str(error).partition("\n")[0].partition(". ")[0]
        reason = instead_of_weights(path) or f"{said or type(error).__name__}; {AGAIN}"
        raise ValueError(f"{path} is not a complete checkpoint ({reason})") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the text metadata of a ``.safetensors`` file, without its checksum."""
    with safe_open(located(path), framework="pt") as file:
        return _texts(file)


def _texts(file: Any) -> dict[str, str]:
    return {name: text for name, text in (file.metadata() or {}).items() if name != SUM}


def write_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes tensors as ``.safetensors`` with a checksum; an interrupted call leaves the old file as it was.

    Args:
        path: the file; its directory is created.
        state: tensors by name; shared storage is copied.
        dtype: floating-point tensors are converted to it; ``None`` keeps their dtype.
        metadata: texts, or values that are stored as JSON.
    """
    tensors = {}
    for name, tensor in state.items():
        convert = dtype is not None and tensor.is_floating_point()
        tensors[name] = tensor.detach().to("cpu", dtype if convert else tensor.dtype, copy=True).contiguous()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **texts, SUM: tensors_hash(tensors)})
        _sort_metadata(temporary)


def _sort_metadata(file: Path) -> None:
    """Sorts the metadata of a safetensors file, which its library writes in a random order."""
    with file.open("r+b") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(content) <= length:  # the tensors stay where they are
            opened.seek(8)
            opened.write(content.ljust(length))


def tensors_hash(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of tensors on the CPU, with their names, dtypes and shapes, in any order."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path = "checkpoint",
    allow: Sequence[str] = (),
) -> None:
    """Loads ``state`` into ``module``, strictly.

    Args:
        module: the module.
        state: tensors by name, which are converted to the dtypes of the module.
        source: name of the checkpoint in errors.
        allow: patterns (``fnmatch``) of names that ``state`` may lack or have in excess.

    Raises:
        ValueError: a name outside ``allow`` is missing or unexpected, a shape differs, or a number is NaN.
    """
    check_weights(module, state, source=source, allow=allow)
    for name, value in state.items():
        if value.is_floating_point() and value.isnan().any():
            raise ValueError(f"{source}: got NaN in {name}, expected numbers; give an earlier checkpoint")
    own = module.state_dict()
    module.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def check_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | Path = "checkpoint",
    allow: Sequence[str] = (),
) -> None:
    """Checks that ``state`` fits ``module``, which may be on the meta device; for arguments see :func:`load_weights`.

    Raises:
        ValueError: a name outside ``allow`` is missing or unexpected, or a shape differs.
    """
    if found := misfit(module, state, allow):
        remedy = "give the weights of this model, or the config that they belong to"
        raise ValueError(f"{source} does not fit {type(module).__name__}: {found}; {remedy}")


def misfit(module: nn.Module, state: Mapping[str, Tensor], allow: Sequence[str] = ()) -> str:
    """Returns what :func:`check_weights` would complain of, in words; an empty text if ``state`` fits."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not _matches(name, allow)]
    unexpected = [name for name in state if name not in own and not _matches(name, allow)]
    wrong = [
        f"{n} {tuple(state[n].shape)} != {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for what, names in parts
        if names
    )


def average_as_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with the running average in place of the weights, and without the average's own names.

    A state without an average is returned unchanged.
    """
    plain = {name: value for name, value in state.items() if not name.startswith("model_ema.")}
    for name in plain:
        average = "model_ema." + name.removeprefix("model.").replace(".", "")
        if average in state:
            plain[name] = state[average]
    return plain


def choose_weights(state: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint with the chosen weights.

    Args:
        state: tensors by name.
        which: ``average`` (the running average in place of the weights, if there is one), ``raw`` (the weights) or
            ``both`` (the weights, and the average under its own names).

    Raises:
        ValueError: another word, or ``both`` for a checkpoint without an average.
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


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes tensors under ``state_dict`` of a ``.ckpt``, as CompVis and Lightning do.

    An interrupted call leaves the old file as it was. ``global_step``, which CompVis' scripts need for the name of a
    folder, is 0, because training starts again without optimisers.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_training_state(path, {"state_dict": tensors, "global_step": 0})


def write_training_state(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a ``.ckpt``: weights, and whatever else a run needs to go on.

    Raises:
        OSError: the file cannot be written, for example on a full disk; the old one is unchanged.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # torch says of a file why it cannot be written
        torch.save(dict(content), file)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
