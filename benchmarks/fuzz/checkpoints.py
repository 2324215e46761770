"""Bad files of weights: pickles that run something, headers that lie, cut files, and files that are something else."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fuzz.attempt import MARK, Attempt, command, mutated
from benchmarks.fuzz.system import TREE, copied
from ldm.checkpoint import read_contents, read_weights, write_checkpoint, write_training_state, write_weights

STATE = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(4), "steps": torch.tensor(7), "half": torch.ones(2).half()}


class Reduced:
    """An object whose pickle asks for a call."""

    def __init__(self, function: Callable[..., Any], *words: Any) -> None:
        self._call = function, words

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Returns the call."""
        return self._call


# Pickles of protocol 0, by hand: names that no import needs, and opcodes that are out of place.
PICKLES = {
    "os.system": f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode(),
    "eval": f"c__builtin__\neval\n(S\"open('{MARK}','w')\"\ntR.".encode(),
    "builtins.exec": f"cbuiltins\nexec\n(S\"open('{MARK}','w')\"\ntR.".encode(),
    "getattr": f"cbuiltins\ngetattr\n(cos\nopen\nS'system'\ntR(S'touch {MARK}'\ntR.".encode(),
    "torch.load": b"ctorch.serialization\nload\n(S'x'\ntR.",
    "numpy's object loader": f"cnumpy.testing._private.utils\nrunstring\n(S\"open('{MARK}','w')\"\n}}tR.".encode(),
    "an instance": f"(S'touch {MARK}'\nios\nsystem\n.".encode(),
    "no end": b"(((((((((",
    "an empty stack": b".",
    "a memo that is not there": b"g99\n.",
    "a persistent number": b"P123\n.",
    "a huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "a huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "a huge memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "protocol 99": b"\x80\x63N.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "codecs": f"c_codecs\nencode\n(S'{MARK}'\nS'rot13'\ntR.".encode(),
}


def _objects() -> dict[str, Any]:
    """Returns contents whose pickles ask for more than tensors, or for tensors that lie."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    storage = torch.UntypedStorage(16)
    rebuild: Any = torch._utils._rebuild_tensor_v2
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    nested: Any = {}
    for _ in range(100):
        nested = {"a": nested}
    return {
        "os.system in a state": {"state_dict": {"a": Reduced(os.system, f"touch {MARK}")}},
        "open in callbacks": {"state_dict": STATE, "callbacks": Reduced(open, MARK, "w")},
        "eval as epoch": {"state_dict": STATE, "epoch": Reduced(eval, f"open('{MARK}', 'w')")},
        "a callback that writes": {"state_dict": STATE, "x": Reduced(ModelCheckpoint, MARK)},
        "a size beyond the storage": {"a": Reduced(rebuild, typed, 0, (10**6, 10**6), (10**6, 1), False, {})},
        "a negative offset": {"a": Reduced(rebuild, typed, -100, (2,), (1,), False, {})},
        "a negative stride": {"a": Reduced(rebuild, typed, 0, (2, 2), (-5, 1), False, {})},
        "a huge offset": {"a": Reduced(rebuild, typed, 2**62, (2,), (1,), False, {})},
        "no tensors": {"state_dict": {"a": 1, "b": "text"}},
        "a list": {"state_dict": [torch.ones(2)]},
        "a tensor as state_dict": {"state_dict": torch.ones(2)},
        "numbers as names": {1: torch.ones(2), 2: torch.ones(3)},
        "a module": {"state_dict": torch.nn.Linear(2, 2)},
        "nested 100 times": nested,
        "an empty state": {"state_dict": {}},
        "empty": {},
        "complex numbers": {"a": torch.ones(2, dtype=torch.complex64)},
        "a sparse tensor": {"a": torch.eye(3).to_sparse()},
        "numpy objects": {"state_dict": STATE, "x": np.array([{"a": 1}], dtype=object)},
        "a tensor on the meta device": {"a": torch.empty(10**6, 10**6, device="meta")},
    }


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Returns a safetensors file of a header and data; ``length`` is what it says of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _part(start: int, end: int, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "nothing": b"",
    "seven bytes": b"\1\0\0\0\0\0\0",
    "a header of 2^63 bytes": _header({}, length=2**63),
    "a header of 100 MB": _header({}, length=100_000_001),
    "a header beyond the end": _header({}, length=500),
    "no JSON": _header(b"no json at all"),
    "a list as header": _header([1, 2]),
    "deep JSON": _header(b'{"a":' + b"[" * 50_000),
    "no UTF-8 in the header": _header(b'{"\xff\xfe": 1}'),
    "the same name twice": _header(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "overlapping offsets": _header({"a": _part(0, 8), "b": _part(4, 12)}, bytes(12)),
    "a hole": _header({"a": _part(0, 8), "b": _part(16, 24)}, bytes(24)),
    "offsets beyond the end": _header({"a": _part(0, 8), "b": _part(8, 16)}, bytes(8)),
    "offsets backwards": _header({"a": _part(8, 0)}, bytes(8)),
    "negative offsets": _header({"a": _part(-8, 0)}, bytes(8)),
    "another size than the shape's": _header({"a": _part(0, 8, (100,))}, bytes(8)),
    "a shape that overflows": _header({"a": _part(0, 8, (2**40, 2**40))}, bytes(8)),
    "a negative shape": _header({"a": _part(0, 8, (-2,))}, bytes(8)),
    "a shape of texts": _header({"a": _part(0, 8, ["x"])}, bytes(8)),
    "an unknown dtype": _header({"a": _part(0, 8, dtype="F999")}, bytes(8)),
    "a dtype of code": _header({"a": _part(0, 8, dtype="__import__('os')")}, bytes(8)),
    "a 4-bit dtype": _header({"a": _part(0, 1, (2,), "F4")}, bytes(1)),
    "a complex dtype": _header({"a": _part(0, 16, (2,), "C64")}, bytes(16)),
    "an 8-bit exponent": _header({"a": _part(0, 2, (2,), "F8_E8M0")}, bytes(2)),
    "metadata of numbers": _header({"__metadata__": {"a": 1}, "a": _part(0, 8)}, bytes(8)),
    "bytes after the end": _header({"a": _part(0, 8)}, bytes(80)),
    "an empty header": _header({}),
    "a path as a name": _header({"../../../../x": _part(0, 8)}, bytes(8)),
}
OTHERS = {
    "a text": b"hello\n",
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "gzip": b"\x1f\x8b\x08\0",
    "zeros": bytes(4096),
    "an ELF program": b"\x7fELF" + bytes(200),
    "nothing": b"",
    "the beginning of a zip": b"PK\3\4" + bytes(30),
}


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to read bad weights."""
    reader = rng.choice((read_weights, read_weights, read_contents))
    for group, suffix in ((PICKLES, ".ckpt"), (SAFETENSORS, ".safetensors"), (OTHERS, rng.choice((".ckpt", ".bin")))):
        if number < len(group):
            what, data = list(group.items())[number]
            return _read(what, data, suffix, reader)
        number -= len(group)
    objects = _objects()
    if number < len(objects):
        what, content = list(objects.items())[number]
        write_training_state("bad.ckpt", content)
        return Attempt(what, lambda: reader("bad.ckpt"), ("bad.ckpt",))
    number -= len(objects)
    if number < 8:
        return _file(("folder", "bomb", "many", "link", "NaN", "wide", "missing", "absent")[number], reader)
    way = rng.randrange(4)
    if way == 0:
        write_checkpoint("bad.ckpt", STATE)
        data, what = mutated(Path("bad.ckpt").read_bytes(), rng)
        return _read(f"a checkpoint, {what}", data, ".ckpt", reader)
    if way == 1:
        write_weights("bad.safetensors", STATE)
        data, what = mutated(Path("bad.safetensors").read_bytes(), rng)
        return _read(f"safetensors, {what}", data, ".safetensors", reader)
    if way == 2:
        data, what = mutated(rng.choice([*PICKLES.values()]), rng)
        return _read(f"a pickle, {what}", data, ".pt", reader)
    copied("model", "clip", "database")
    file = Path(TREE, "model", "model.safetensors")
    data, what = mutated(file.read_bytes(), rng)
    file.write_bytes(data)
    return command(
        f"scripts/check_checkpoint.py, {what}", "scripts/check_checkpoint.py", f"{TREE}/model", "--all_bytes"
    )


def _read(what: str, data: bytes, suffix: str, reader: Callable[[str], object]) -> Attempt:
    Path(f"bad{suffix}").write_bytes(data)
    return Attempt(f"{what} as {suffix}", lambda: reader(f"bad{suffix}"), (f"bad{suffix}",))


def _file(which: str, reader: Callable[[str], object]) -> Attempt:
    """Returns an attempt with a file that is well formed but useless, or that is none."""
    name = ("bad.ckpt",)
    if which == "folder":
        Path("bad.ckpt").mkdir()
    elif which in ("bomb", "many"):
        with zipfile.ZipFile("bad.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
            if which == "bomb":
                archive.writestr("x/data.pkl", bytes(400_000_000))
            for part in range(20_000 if which == "many" else 0):
                archive.writestr(f"x/data/{part}", b"")
    elif which == "link":
        Path("bad.ckpt").symlink_to("bad.ckpt")
    elif which == "NaN":
        copied()
        file = Path(TREE, "model", "model.safetensors")
        write_weights(file, {name: value * float("nan") for name, value in read_weights(file).items()})
    elif which in ("wide", "absent"):
        copied()
        file = Path(TREE, "model", "model.safetensors")
        state = read_weights(file)
        first = next(iter(state))
        changed = {key: value for key, value in state.items() if which == "wide" or key != first}
        write_weights(file, {**changed, **({first: torch.ones(7, 7)} if which == "wide" else {})})
    if which in ("NaN", "wide", "absent"):
        words = ("--prompt", "a flag", "--ckpt", f"{TREE}/model", "--steps", "1", "--n_samples", "1")
        return command(f"weights: {which}", "scripts/txt2img.py", *words, named=("model",), refused=True)
    return Attempt(f"a checkpoint: {which}", lambda: reader("bad.ckpt"), name, refused=True)


def zip_of(parts: dict[str, bytes]) -> bytes:
    """Returns a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return stream.getvalue()
