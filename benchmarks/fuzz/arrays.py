"""Bad files of other projects: CompVis' .npz parts and nn_memory, folders of clip-retrieval."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.fuzz.attempt import Attempt, mutated
from benchmarks.fuzz.checkpoints import PICKLES
from rdm.convert.nn_memory import read_nn_memory
from rdm.retrieval.upkeep.imports import import_database

DIM = 8


class Embedder:
    """Stands for the network that made the vectors, which an import does not call."""

    name, dim, fingerprint = "eight numbers", DIM, "0" * 64

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Returns vectors of pictures."""
        return torch.ones(len(images), DIM)

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Returns vectors of texts."""
        return torch.ones(len(texts), DIM)


def _part(**other: Any) -> dict[str, Any]:
    """Returns the arrays of one of CompVis' parts, with some of them replaced; None leaves one out."""
    vectors = np.random.default_rng(0).standard_normal((6, DIM)).astype(np.float32)
    known = {"embedding": vectors, "img_id": np.arange(6), "patch_coords": np.zeros((6, 4), np.int64), **other}
    return {name: array for name, array in known.items() if array is not None}


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """Returns an .npy file with any header."""
    text = header.encode("latin-1", "replace")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


NPY = {
    "a huge shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 8)}\n"),
    "a negative shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-6, 8)}\n", bytes(192)),
    "a shape of texts": npy("{'descr': '<f4', 'fortran_order': False, 'shape': ('a', 8)}\n", bytes(192)),
    "a shape that overflows": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2**62, 2**62)}\n"),
    "a header of code": npy("__import__('os').system('touch executed')\n"),
    "a call in a header": npy("{'descr': open('executed','w'), 'fortran_order': False, 'shape': (6, 8)}\n", bytes(192)),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (6, 8)}\n", PICKLES["os.system"]),
    "an unknown type": npy("{'descr': '<q9', 'fortran_order': False, 'shape': (6, 8)}\n", bytes(192)),
    "a type of no bytes": npy("{'descr': '|V0', 'fortran_order': False, 'shape': (6, 8)}\n", bytes(192)),
    "deep brackets": npy("(" * 9000 + ")" * 9000 + "\n"),
    "column order": npy("{'descr': '<f4', 'fortran_order': True, 'shape': (6, 8)}\n", bytes(192)),
    "a missing key": npy("{'descr': '<f4', 'shape': (6, 8)}\n", bytes(192)),
    "version 9": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8)}\n", bytes(192), b"\t\t"),
    "complex numbers": npy("{'descr': '<c8', 'fortran_order': False, 'shape': (6, 8)}\n", bytes(384)),
    "too few bytes": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8)}\n", bytes(100)),
    "a shape of one number": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (48,)}\n", bytes(192)),
    "no shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}\n", bytes(4)),
}
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "no embedding": lambda: _part(embedding=None),
    "no ids": lambda: _part(img_id=None),
    "no boxes": lambda: _part(patch_coords=None),
    "another width": lambda: _part(embedding=np.zeros((6, 5), np.float32)),
    "vectors of texts": lambda: _part(embedding=np.full((6, DIM), "a")),
    "vectors of dates": lambda: _part(embedding=np.zeros((6, DIM), "datetime64[s]")),
    "vectors that are not finite": lambda: _part(embedding=np.full((6, DIM), np.nan, np.float32)),
    "vectors of zeros": lambda: _part(embedding=np.zeros((6, DIM), np.float32)),
    "vectors beyond half precision": lambda: _part(embedding=np.full((6, DIM), 1e30, np.float32)),
    "vectors of records": lambda: _part(embedding=np.zeros((6, DIM), [("a", "<f4"), ("b", "<i4")])),
    "no rows": lambda: _part(embedding=np.zeros((0, DIM)), img_id=np.arange(0), patch_coords=np.zeros((0, 4))),
    "ids of another number": lambda: _part(img_id=np.arange(5)),
    "ids that are bytes": lambda: _part(img_id=np.array([b"\xff\xfe"] * 6)),
    "ids of records": lambda: _part(img_id=np.zeros(6, [("a", "<f4")])),
    "boxes of texts": lambda: _part(patch_coords=np.full((6, 4), "x")),
    "boxes that are not finite": lambda: _part(patch_coords=np.full((6, 4), np.nan)),
    "boxes beyond 32 bits": lambda: _part(patch_coords=np.full((6, 4), 2**40)),
    "boxes of fractions": lambda: _part(patch_coords=np.full((6, 4), 0.5)),
}
MEMORIES = {
    "of other types": b"\x80\x02}(X\x09\0\0\0nn_memoryX\1\0\0\0aX\x08\0\0\0id_countK\1u.",
    "a list": b"\x80\x02].",
    "a number": b"\x80\x02K\1.",
    "a huge array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'd'\ntR.",
    "a dtype of objects": b"cnumpy\ndtype\n(S'O'\ntR.",
    "an array of nothing": b"cnumpy\nndarray\n(tR.",
    "a wide array": b"cnumpy\nndarray\n((I100000\nI100000\nttR.",
}


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to import bad arrays."""
    if number < len(PARTS):
        what, make = list(PARTS.items())[number]
        np.savez("bad.npz", **make())
        return _npz(f"a part: {what}")
    number -= len(PARTS)
    if number < 2 * len(NPY):
        what, data = list(NPY.items())[number // 2]
        if number % 2:
            _retrieval()
            Path("theirs/img_emb/img_emb_0.npy").write_bytes(data)
            return _folder(f"clip-retrieval: {what}")
        _archive({"embedding.npy": data})
        return _npz(f"embedding.npy: {what}")
    number -= 2 * len(NPY)
    memories = {**PICKLES, **MEMORIES}
    if number < len(memories):
        what, data = list(memories.items())[number]
        Path("bad.p").write_bytes(data)
        return Attempt(f"nn_memory: {what}", lambda: read_nn_memory("bad.p"), ("bad.p",), refused=True)
    return _random(rng)


def _random(rng: random.Random) -> Attempt:
    way = rng.randrange(4)
    if way == 0:
        np.savez_compressed("bad.npz", **_part())
        data, what = mutated(Path("bad.npz").read_bytes(), rng)
        Path("bad.npz").write_bytes(data)
        return _npz(f"a part, {what}")
    if way == 1:
        _retrieval()
        file = rng.choice(list(Path("theirs").rglob("*.*")))
        data, what = mutated(file.read_bytes(), rng)
        file.write_bytes(data)
        return _folder(f"clip-retrieval, {file.name}, {what}")
    if way == 2:
        _retrieval()
        cells = rng.choice(([1] * 6, [None] * 6, [[1]] * 6, [{"a": 1}] * 6, [b"\xff"] * 6, ["x"] * 5, [0.5] * 6))
        name = rng.choice(("caption", "url", "key", "image_path", "license"))
        pq.write_table(pa.table({name: cells}), "theirs/metadata/metadata_0.parquet")
        return _folder(f"clip-retrieval, {name}={cells[:1]}")
    data, what = mutated(rng.choice([*PICKLES.values(), *MEMORIES.values()]), rng)
    Path("bad.p").write_bytes(data)
    return Attempt(f"nn_memory, {what}", lambda: read_nn_memory("bad.p"), ("bad.p",))


def _archive(parts: dict[str, bytes]) -> None:
    with zipfile.ZipFile("bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in _part().items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", parts.get(f"{name}.npy", stream.getvalue()))


def _retrieval() -> None:
    """Writes a folder of clip-retrieval of six rows."""
    for part in ("img_emb", "metadata"):
        Path("theirs", part).mkdir(parents=True)
    np.save("theirs/img_emb/img_emb_0.npy", np.random.default_rng(0).standard_normal((6, DIM)).astype(np.float16))
    cells = {"caption": list("abcdef"), "url": ["u"] * 6, "key": list("123456")}
    pq.write_table(pa.table(cells), "theirs/metadata/metadata_0.parquet")


def _npz(what: str) -> Attempt:
    return Attempt(what, lambda: import_database(["bad.npz"], "out", Embedder(), progress=False), ("bad.npz",))


def _folder(what: str) -> Attempt:
    def read() -> None:
        database = import_database(["theirs"], "out", Embedder(), progress=False)
        database.metadata(np.arange(len(database)))
        for name in ("caption", "uri", "licence"):
            database.column(name)

    return Attempt(what, read, ("theirs", "out"))
