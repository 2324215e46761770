from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import QUIET, ProjectionEmbedder, contents, write_pictures
from PIL import Image

from ldm.data import ImageFolder
from rdm.retrieval.builder.build import build_database, prepare_database
from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.rows import RetrievalDatabase

ROOT = Path(__file__).parents[4]


def test_embeddings_are_the_raw_vectors_in_float16(database: RetrievalDatabase, source: dict[str, Any]) -> None:
    embedder, images = ProjectionEmbedder(), ImageFolder(**source["params"])
    expected = embedder.images(torch.stack([images[i]["image"] for i in range(19)])).numpy()
    assert len(database) == 19
    assert database.dim == 8
    assert [shard["rows"] for shard in database.card["shards"]] == [8, 8, 3]
    rows = np.array([[18, 0, 7], [8, 8, 15]])
    found = database.embeddings(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[rows], rtol=1e-3)
    np.testing.assert_array_equal(found, database.embeddings(np.arange(19))[rows])
    np.testing.assert_array_equal(np.concatenate(list(database.blocks(5))), database.embeddings(np.arange(19)))
    assert np.load(database.path / "embeddings/00002.npy").dtype == np.float16
    assert database.embeddings(np.empty((2, 0), np.int64)).shape == (2, 0, 8)


def test_metadata_names_the_picture(database: RetrievalDatabase, source: dict[str, Any]) -> None:
    last, first = database.metadata([18, 0])
    assert (first["image_id"], first["class_id"], first["item"]) == ("class0/000.png", "class0", 0)
    assert (last["image_id"], last["class_id"], last["item"]) == ("class1/017.png", "class1", 18)
    assert [first[key] for key in ("x0", "y0", "x1", "y1")] == [0, 0, 8, 8]
    assert first["uri"] == f"{source['params']['root']}/class0/000.png"
    values = database.values("class_id", np.array([[0, 18], [9, 10]]))
    assert values.tolist() == [["class0", "class1"], ["class0", "class1"]]
    with pytest.raises(ValueError, match="'colour'.*image_id"):
        database.values("colour", [0])


def test_patches_are_the_pictures_themselves(database: RetrievalDatabase, source: dict[str, Any]) -> None:
    file = Path(source["params"]["root"]) / "class1/017.png"
    (patch,) = database.patches([18])
    np.testing.assert_array_equal(patch, np.asarray(Image.open(file)))
    Image.fromarray(255 - patch).save(file)
    with pytest.raises(ValueError, match=r"class1/017\.png.*restore the source"):
        database.patches([18])


def test_rows_that_are_not_there_are_refused(database: RetrievalDatabase) -> None:
    with pytest.raises(ValueError, match="-1 to 3.* 0 to 18"):
        database.embeddings([3, -1])
    with pytest.raises(ValueError, match="0 to 18"):
        database.metadata([19])
    with pytest.raises(ValueError, match="float64"):
        database.embeddings(np.array([0.5]))


def test_another_embedder_is_refused_with_both_fingerprints(
    database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    mine, other = ProjectionEmbedder(), ProjectionEmbedder(seed=1)
    assert RetrievalDatabase.open(database.path, mine).fingerprint == database.fingerprint
    for attempt in (
        lambda: RetrievalDatabase.open(database.path, other),
        lambda: prepare_database(database.path, source, other),
    ):
        with pytest.raises(ValueError, match="delete") as caught:
            attempt()
        assert mine.fingerprint in str(caught.value)
        assert other.fingerprint in str(caught.value)
    changed = {**source, "params": {**source["params"], "size": 4}}
    with pytest.raises(ValueError, match='"size": 8.* got .*"size": 4.*delete'):
        prepare_database(database.path, changed, mine)


def test_damage_is_found(database: RetrievalDatabase) -> None:
    database.verify()
    known = database.card["shards"][0].pop("embeddings")
    with pytest.raises(ValueError, match=r"00000\.npy is damaged.*expected missing"):
        database.verify()
    database.card["shards"][0]["embeddings"] = known
    shard = database.path / "embeddings/00001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"00001\.npy.*sha256"):
        database.verify()
    metadata = database.path / "metadata/00002.parquet"
    whole = metadata.read_bytes()
    for damaged in (whole[:-7], whole[: len(whole) // 2], b""):
        metadata.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00002\.parquet.*; rebuild"):
            RetrievalDatabase.open(database.path).values("caption", [18])
    metadata.write_bytes(whole)
    shard.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"00001\.npy.*; rebuild"):
        RetrievalDatabase.open(database.path)
    card = json.loads((database.path / "database.json").read_text())
    (database.path / "database.json").write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(ValueError, match="format 99.* 1"):
        RetrievalDatabase.open(database.path)
    with pytest.raises(FileNotFoundError, match=r"nothing.*scripts/build_database\.py"):
        RetrievalDatabase.open(database.path / "nothing")


def test_it_travels_to_workers_without_its_arrays(database: RetrievalDatabase) -> None:
    database.embeddings(np.arange(19))
    sent = pickle.dumps(database)
    assert len(sent) < 3000
    np.testing.assert_array_equal(pickle.loads(sent).embeddings([4]), database.embeddings([4]))  # noqa: S301


KILLED = """
import os, random, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from pictures import ProjectionEmbedder
from rdm.retrieval.builder.build import build_database

class Deadly(ProjectionEmbedder):
    left = 0
    def images(self, images):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(images)

for moment in (1, 3, 2, 0.004, 0.03):
    child = os.fork()
    if child == 0:
        embedder = Deadly()
        embedder.left = moment if isinstance(moment, int) else 10**9
        build_database(
            {path!r}, {source!r}, embedder, patches={patches!r}, batch_size=4, shard_rows=8, progress=False
        )
        os._exit(0)
    if not isinstance(moment, int):
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if isinstance(moment, int) and not os.WIFSIGNALED(status):
        sys.exit("the build was not killed")
"""


@pytest.mark.parametrize("patches", [None, {"policy": "random", "count": 2, "min_side": 4}])
def test_a_killed_build_continues_to_the_same_bytes(
    tmp_path: Path, source: dict[str, Any], patches: dict[str, Any] | None
) -> None:
    undisturbed = build_database(tmp_path / "db", source, ProjectionEmbedder(), patches=patches, **QUIET)
    path = tmp_path / "killed"
    code = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(path), source=source, patches=patches)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    resumed = prepare_database(path, source, ProjectionEmbedder(), patches=patches, **QUIET)
    assert len(resumed) == (19 if patches is None else 37)  # one picture's two squares are the same
    assert contents(path) == contents(undisturbed.path)
    assert resumed.fingerprint == undisturbed.fingerprint


class FailingAt(ProjectionEmbedder):
    """Gives a vector that is not finite in its n-th batch."""

    def __init__(self, batch: int, value: float = float("nan")) -> None:
        super().__init__()
        self.batch, self.value = batch, value

    def images(self, images: torch.Tensor) -> torch.Tensor:
        self.batch -= 1
        return super().images(images) if self.batch else torch.full((len(images), self.dim), self.value)


def test_an_unfinished_build_is_continued_only_as_it_began(
    tmp_path: Path, database: RetrievalDatabase, source: dict[str, Any]
) -> None:
    path = tmp_path / "stopped"
    with pytest.raises(ValueError, match=r"class1/005\.png"):
        build_database(path, source, FailingAt(4), **QUIET)
    with pytest.raises(FileNotFoundError, match=f"{path}.*scripts/build_database"):
        RetrievalDatabase.open(path)
    with pytest.raises(ValueError, match=f"{path} .* fingerprint .*delete"):
        build_database(path, source, ProjectionEmbedder(seed=1), **QUIET)
    fewer = write_pictures(tmp_path / "fewer", 3)
    with pytest.raises(ValueError, match=f"{path} .* got .*if no other process is at work on it, delete"):
        build_database(path, fewer, ProjectionEmbedder(), **QUIET)
    assert json.loads((path / "build.json").read_text())["next"] == 8
    shard = path / "metadata/00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])  # damaged after it was written: built again
    build_database(path, source, ProjectionEmbedder(), **{**QUIET, "shard_rows": 16})  # keeps the 8 it began with
    assert contents(path) == contents(database.path)
    with pytest.raises(ValueError, match=f"{path}; delete"):
        build_database(path, source, ProjectionEmbedder(), **QUIET)


def test_what_cannot_be_stored_is_an_error(tmp_path: Path, source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="70000.*65504"):
        build_database(tmp_path / "large", source, FailingAt(1, 7e4), **QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("my thesis")
    with pytest.raises(ValueError, match="full.*name another path"):
        build_database(tmp_path / "full", source, ProjectionEmbedder(), **QUIET)


class FillingDisk(ProjectionEmbedder):
    """Once the first shard of a build is written, lets no file of this process grow large, as a full disk would."""

    def __init__(self, plan: Path, dim: int) -> None:
        super().__init__(dim=dim)
        self.plan, self.batches = plan, 0

    def images(self, images: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        if self.batches == 2:
            while json.loads(self.plan.read_text())["next"] == 0:  # written by a thread
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return super().images(images)


def test_a_full_disk_leaves_the_complete_shards(tmp_path: Path, source: dict[str, Any]) -> None:
    options = {**QUIET, "batch_size": 8}  # a shard has 64 kB of vectors
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="db.*complete shards are kept.*run the same command"):
            build_database(tmp_path / "db", source, FillingDisk(tmp_path / "db/build.json", dim=4096), **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.name for file in sorted((tmp_path / "db").rglob("*.npy"))] == ["00000.npy"]
    assert json.loads((tmp_path / "db/build.json").read_text())["next"] == 8
    build_database(tmp_path / "db", source, ProjectionEmbedder(dim=4096), **options)
    undisturbed = build_database(tmp_path / "whole", source, ProjectionEmbedder(dim=4096), **options)
    assert contents(tmp_path / "db") == contents(undisturbed.path)


def test_broken_pictures_have_no_row(tmp_path: Path, source: dict[str, Any]) -> None:
    root = Path(source["params"]["root"])
    for name in ("class0/002.png", "class1/017.png"):
        (root / name).write_bytes(b"not a picture")
    database = build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)
    assert len(database) == 17
    names = database.column("image_id").to_pylist()
    assert names == sorted(set(names))
    assert not {"class0/002.png", "class1/017.png"} & set(names)
    picture = np.asarray(Image.open(root / "class0/004.png"))
    np.testing.assert_array_equal(database.patches([names.index("class0/004.png")])[0], picture)


class Dropping(dict):
    """Forgets what it is given at once, as if other threads had read so much meanwhile that it was dropped."""

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)
        self.clear()


def test_what_another_thread_drops_from_memory_is_read_all_the_same(database: RetrievalDatabase) -> None:
    expected, outlines = database.metadata([3, 18]), Outlines(database, 0.9)
    first = outlines[3]
    database._tables, outlines._known = Dropping(), Dropping()
    assert database.metadata([3, 18]) == expected
    np.testing.assert_array_equal(outlines[3], first)
