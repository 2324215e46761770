"""Databases and indices with changed, cut and missing files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from benchmarks.fuzz.attempt import Attempt, command, mutated, replaced
from benchmarks.fuzz.system import TREE, copied
from ldm.files import file_hash
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.faiss_index import NeighbourIndex

FILES = ("database.json", "index/index.json", "index/index.faiss", "embeddings/00000.npy", "metadata/00000.parquet")
DATABASE = Path(TREE, "database")
WAYS = ("gone", "folder", "empty", "link")


def attempt(rng: random.Random, number: int) -> Attempt:
    """Returns an attempt to open a bad database."""
    copied()
    way, file = rng.randrange(8), DATABASE / rng.choice(FILES)
    if number < len(FILES) * len(WAYS):
        file = DATABASE / FILES[number // len(WAYS)]
        what = _replaced(file, WAYS[number % len(WAYS)])
    elif way < 4 and file.suffix == ".json" or way == 0:
        file = file if file.suffix == ".json" else DATABASE / "database.json"
        content, what, _ = replaced(json.loads(file.read_text(encoding="utf-8")), rng)
        file.write_text(json.dumps(content), encoding="utf-8", errors="replace")
    elif way == 1:
        what = _removed(rng)
    else:
        data, what = mutated(file.read_bytes(), rng)
        file.write_bytes(data)
        if file.name == "index.faiss" and rng.random() < 0.7:  # as one who forges it would
            card = json.loads((DATABASE / "index/index.json").read_text(encoding="utf-8"))
            card["sha256"] = file_hash(file)
            (DATABASE / "index/index.json").write_text(json.dumps(card), encoding="utf-8")
            what += ", with its hash"
    return _used(f"{file.name}: {what}", rng)


def _replaced(file: Path, way: str) -> str:
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way == "empty":
        file.touch()
    elif way == "link":
        file.symlink_to(file.name)
    return way


def _removed(rng: random.Random) -> str:
    """Writes a bad file of removed rows."""
    marks = rng.choice(
        (
            {"00000": np.array([99])},
            {"00000": np.array([-1])},
            {"00000": np.array(["a"])},
            {"00000": np.array([[1, 2]])},
            {"00000": np.array([0.5])},
            {"00000": np.array([np.nan])},
            {"none": np.array([1])},
            {"00000": np.arange(12)},
            {},
        )
    )
    np.savez(DATABASE / "removed.npz", **marks)
    if rng.random() < 0.4:
        data, what = mutated((DATABASE / "removed.npz").read_bytes(), rng)
        (DATABASE / "removed.npz").write_bytes(data)
        return f"removed.npz, {what}"
    return f"removed.npz of {marks}"


def _used(what: str, rng: random.Random) -> Attempt:
    def read() -> None:
        database = RetrievalDatabase.open(DATABASE)
        database.living_rows()
        vectors = database.embeddings(np.arange(len(database)))
        database.metadata(np.arange(len(database)))
        NeighbourIndex.open(database, progress=False).search(vectors[:2], 2)

    way = rng.randrange(4)
    if way < 2:
        return Attempt(f"open: {what}", read, ("database", "index", "shard", "row"))
    if way == 2:
        words = ("--prompt", "a flag", "--ckpt", f"{TREE}/model", "--steps", "1", "--n_samples", "1", "--outdir", "out")
        return command(f"txt2img.py: {what}", "scripts/txt2img.py", *words, named=("database", "index", "shard", "row"))
    name = rng.choice(("show", "verify", "compact", "remove"))
    rules = ("--licence", "x") if name == "remove" else ()
    return command(f"{name}: {what}", "scripts/build_database.py", name, str(DATABASE), *rules, named=(TREE,))
