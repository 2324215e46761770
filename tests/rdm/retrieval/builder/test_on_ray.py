"""A build on a Ray cluster of two machines is that of one process, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import QUIET, ProjectionEmbedder, contents, write_pictures

from ldm.util import instantiate_from_config
from rdm.retrieval.builder.build import build_database, prepare_database
from rdm.retrieval.builder.on_ray import Job, ShardWriter, outline, places
from rdm.retrieval.builder.plan import new_plan
from rdm.retrieval.builder.work import Work
from rdm.retrieval.patches.policy import Patches
from rdm.retrieval.upkeep.append import append_pictures

TESTS = Path(__file__).parents[3]
PATCHES = {"policy": "random", "count": 2, "min_side": 4}
NEEDED = "ray is not installed: pip install -e '.[ray]'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster of two machines with a core each, which are both this one."""
    pytest.importorskip("ray", reason=NEEDED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS.parent, TESTS, Path(__file__).parent))))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        machine = {"num_cpus": 1, "object_store_memory": 100_000_000}
        machines = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
        try:
            machines.add_node(**machine)
            yield machines.address
        finally:
            machines.shutdown()


class Meeting(ProjectionEmbedder):
    """Begins only when it is at work on two machines."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def images(self, images: torch.Tensor) -> torch.Tensor:
        import ray

        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        give_up = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < 2:
            if time.monotonic() > give_up:
                raise ValueError("the other machine has no work")
            time.sleep(0.01)
        return super().images(images)


class Failing(ProjectionEmbedder):
    """Gives vectors that are not finite."""

    def images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), self.dim), float("nan"))


def spoil(source: dict[str, Any]) -> None:
    """Makes two pictures unreadable."""
    for name in ("class0/002.png", "class1/017.png"):
        (Path(source["params"]["root"]) / name).write_bytes(b"not a picture")


@pytest.mark.slow
def test_two_machines_write_the_bytes_of_one_process(cluster: str, tmp_path: Path, source: dict[str, Any]) -> None:
    spoil(source)
    (tmp_path / "met").mkdir()
    one = build_database(tmp_path / "one", source, ProjectionEmbedder(), patches=PATCHES, **QUIET)
    embedder, dealt_out = Meeting(tmp_path / "met"), {**QUIET, "workers": 1, "ray": cluster}
    two = build_database(tmp_path / "two", source, embedder, patches=PATCHES, **dealt_out)
    assert len(list((tmp_path / "met").iterdir())) == 2
    assert contents(two.path) == contents(one.path)
    report = json.loads((two.path / "unreadable.json").read_text())["unreadable"]
    assert [fault["item"] for fault in report] == [1, 18] and len(two) == 33
    root = Path(source["params"]["root"])
    write_pictures(root, 30, seed=1)  # the others anew, with other pixels, which an append does not look at
    for database, how in ((one, QUIET), (two, dealt_out)):
        append_pictures(database.path, source, ProjectionEmbedder(), patches=PATCHES, **how)
    assert contents(two.path) == contents(one.path)
    assert json.loads((two.path / "database.json").read_text())["rows"] > 50


KILLED = """
import json, os, signal, time
from pathlib import Path
from pictures import ProjectionEmbedder
from rdm.retrieval.builder.build import build_database

class Deadly(ProjectionEmbedder):
    def __init__(self, driver):
        super().__init__()
        self.driver, self.batches = driver, 0

    def images(self, images):
        self.batches += 1
        if self.batches == 5:  # in the second shard of this machine
            while json.loads(Path({path!r}, "build.json").read_text())["next"] == 0:
                time.sleep(0.01)
            os.kill(self.driver, signal.SIGKILL)
        return super().images(images)

build_database(
    {path!r}, {source!r}, Deadly(os.getpid()), patches={patches!r}, batch_size=4, shard_rows=8, progress=False,
    ray={address!r},
)
"""


@pytest.mark.slow
def test_a_killed_build_continues_with_or_without_the_cluster(
    cluster: str, tmp_path: Path, source: dict[str, Any]
) -> None:
    spoil(source)
    undisturbed = build_database(tmp_path / "db", source, ProjectionEmbedder(), patches=PATCHES, **QUIET)
    path, alone = tmp_path / "killed", tmp_path / "alone"
    code = KILLED.format(path=str(path), source=source, patches=PATCHES, address=cluster)
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == -9
    assert json.loads((path / "build.json").read_text())["next"] in (8, 16)
    assert not (path / "database.json").exists()
    shutil.copytree(path, alone)
    for folder, how in ((alone, {}), (path, {"ray": cluster})):
        database = prepare_database(folder, source, ProjectionEmbedder(), patches=PATCHES, **QUIET, **how)
        assert contents(folder) == contents(undisturbed.path)
        assert database.fingerprint == undisturbed.fingerprint


@pytest.mark.slow
def test_what_goes_wrong_on_a_machine_is_said(cluster: str, tmp_path: Path, source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^\S+: .*projection-0.*class0/000\.png"):
        build_database(tmp_path / "failed", source, Failing(), **QUIET, ray=cluster)
    spoil(source)
    with pytest.raises(ValueError, match="^1 .*max_broken=0"):
        build_database(tmp_path / "strict", source, ProjectionEmbedder(), **QUIET, max_broken=0, ray=cluster)
    assert json.loads((tmp_path / "strict/build.json").read_text())["next"] == 0


def test_a_machine_that_sees_other_folders_is_named(tmp_path: Path, source: dict[str, Any]) -> None:
    images, embedder, work = instantiate_from_config(source), ProjectionEmbedder(), Work(batch_size=4, shard_rows=8)
    plan = new_plan(source, images, Patches(None), embedder, work.shard_rows)
    path, file = tmp_path / "db", "build.json"
    job = Job(path, file, plan, range(19), outline(images), embedder, work, 1, str(tmp_path), ())

    def said() -> dict[str, Any]:
        return json.loads(ShardWriter(job)({"start": 8, "stop": 16})["done"])

    told = "all machines must see the source"
    assert f": no build.json in {path}; {told}" in said()["error"] and said()["system"]
    path.mkdir()
    plan.write(path / file)
    assert said()["shard"]["name"] == "00001" and said()["shard"]["rows"] == 8
    root = Path(source["params"]["root"])
    (root / "class1/017.png").unlink()
    from_to = f"pictures from {root}/class0/000.png to {root}/class1"
    assert f": the source has 18 {from_to}/015.png, expected 19 {from_to}/017.png; {told}" in said()["error"]
    shutil.rmtree(root)
    assert "no image folder at" in said()["error"] and told in said()["error"]


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ([{"CPU": 8.0}], (1, 8, 0)),
        ([{"CPU": 4.0}, {"CPU": 64.0}, {"memory": 1e9}], (17, 4, 0)),
        ([{"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}], (6, 4, 1)),
    ],
)
def test_a_gpu_or_a_machine_is_a_place(machines: list[dict[str, float]], expected: tuple[int, int, int]) -> None:
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    assert places([*nodes, {"Alive": False, "Resources": {"CPU": 1.0}}]) == expected


def test_a_cluster_without_cores_is_refused() -> None:
    with pytest.raises(ValueError, match="1 machines.* core"):
        places([{"Alive": True, "Resources": {"memory": 1e9}}])


def test_wrong_addresses_are_one_line(tmp_path: Path, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(address: str) -> None:
        build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET, ray=address)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(ValueError, match=r"pip install .*\[ray\]'"):
            build("local")
    pytest.importorskip("ray", reason=NEEDED)
    for address in ("here", "ray://127.0.0.1:10001"):
        with pytest.raises(ValueError, match=f"'{address}'.*HOST:PORT"):
            build(address)
    for address in ("127.0.0.1:9", "127.0.0.1:99999"):
        with pytest.raises(ConnectionError, match=f"{address} .*'ray start'"):
            build(address)
    build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)  # nothing stands in the way of another
