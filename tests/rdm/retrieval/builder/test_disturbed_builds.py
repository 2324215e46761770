"""Builds that are disturbed: by another process that builds the same, by a signal, by a full disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import small_files
from pictures import QUIET, ProjectionEmbedder, contents, write_pictures

from ldm.command_line import command_line
from ldm.util import instantiate_from_config
from rdm.retrieval.builder.build import build_database, prepare_database
from rdm.retrieval.database.shards import new_folder
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours.build import prepare_neighbour_table

ROOT = Path(__file__).resolve().parents[4]
BUILD = """
import json, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from pathlib import Path
from pictures import ProjectionEmbedder
from small_models import VQ
from ldm.command_line import configure_logging
from ldm.util import instantiate_from_config
from rdm.data.codes import prepare_code_table
from rdm.data.row_tables import RowTable
from rdm.evaluate.extract import extract
from rdm.retrieval.builder.build import prepare_database
from rdm.retrieval.index.faiss_index import NeighbourIndex
from rdm.retrieval.neighbours.build import prepare_neighbour_table

class Slow(ProjectionEmbedder):
    seen = 0
    def images(self, images):
        time.sleep(0.2)
        self.seen += len(images)
        return super().images(images)

class Table(RowTable):
    what, card_file, name, setting = "values", "card.json", "values", "none"

class Network:
    name, fingerprint = "mean", "1"
    def about(self):
        return {{}}
    def features(self, images):
        computed.append(len(images))
        time.sleep(0.2)
        return images.flatten(1)[:, :4], None

class Source:
    fingerprint = "2"
    def __len__(self):
        return len(images)
    def batches(self, start, size):
        for first in range(start, len(images), 6):
            yield torch.stack([images[i]["image"] for i in range(first, min(first + 6, len(images)))])

configure_logging()
path, source, computed = Path({path!r}), {source!r}, []
images, embedder = instantiate_from_config(source), Slow()
def values_of(rows):
    computed.append(len(rows))
    time.sleep(0.5)
    return torch.from_numpy(rows)[:, None]
torch.manual_seed(0)
stage = instantiate_from_config(VQ).eval()
print("ready", flush=True)
sys.stdin.readline()
database = prepare_database(path, source, embedder, batch_size=4, shard_rows=8, progress=False)
index = NeighbourIndex.open(database, progress=False)
table = prepare_neighbour_table(path / "neighbours/train", images, embedder, database, index, k=3, progress=False)
rows = Table.prepare(path / "values", database, [table.rows], {{}}, values_of, progress=False)
codes = prepare_code_table(path / "codes", images, stage, progress=False)
[found] = extract(Source(), [Network()], path / "features")
print(json.dumps([embedder.seen, sum(computed), table.rows.tolist(), rows.values.sum().item(), codes.values.tolist(),
                  found.features.sum().item()]))
"""


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    return write_pictures(tmp_path / "pictures", 20)


def test_two_processes_that_build_the_same_do_not_break_one_another(tmp_path: Path, source: dict[str, Any]) -> None:
    path = tmp_path / "db"
    code = BUILD.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(path), source=source)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) for _ in range(2)]  # noqa: S603
    for process in both:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    ours, theirs = (json.loads(output.splitlines()[-1]) for output, _ in said)
    assert ours[2:] == theirs[2:]
    assert sorted((ours[0], theirs[0])) == [0, 20]  # one of them embedded all pictures, the other none
    rows = len(np.unique(ours[2]))
    assert ours[1] + theirs[1] == rows + 1 + 20  # values and features were computed once; one row tells the size
    waited = "".join(errors for _, errors in said)
    assert f"is building {path}; waiting for it" in waited
    assert not list(tmp_path.rglob("*.lock")) and not list(tmp_path.rglob("*.tmp"))


class Told(ProjectionEmbedder):
    """Sends this process a signal while it embeds its fourth batch."""

    number, left = signal.SIGTERM, 4

    def images(self, images: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)
        return super().images(images)


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "interr")])
def test_a_build_that_is_told_to_stop_says_so_and_how_to_go_on(
    number: int, code: int, said: str, tmp_path: Path, source: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    embedder = Told()
    embedder.number = number
    whole = build_database(tmp_path / "whole", source, ProjectionEmbedder(), **QUIET)
    build = command_line(lambda each: prepare_database(tmp_path / "db", source, each, **QUIET))
    with pytest.raises(SystemExit) as caught:
        build(embedder)
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == code and said in last and "the same command continues" in last
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.lock"))
    build(ProjectionEmbedder())
    assert contents(tmp_path / "db") == contents(whole.path)


def test_an_unfinished_lock_does_not_stop_a_build(tmp_path: Path, source: dict[str, Any]) -> None:
    """The file of the lock is left behind by a process that was killed."""
    whole = build_database(tmp_path / "whole", source, ProjectionEmbedder(), **QUIET)
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / ".lock").write_text("process 1 on elsewhere")
    prepare_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)
    assert contents(tmp_path / "db") == contents(whole.path)


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as folder:
        (folder / "a").touch()
    with pytest.raises(ValueError, match="new exists already"), new_folder(tmp_path / "new"):
        pass
    assert contents(tmp_path) == {"new/a": b""}


def test_an_index_that_does_not_fit_is_named_and_leaves_the_earlier_one(tmp_path: Path, source: dict[str, Any]) -> None:
    database = build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)
    index = NeighbourIndex.open(database, "Flat", progress=False)
    before = contents(database.path / "index")
    with pytest.raises(OSError) as caught, small_files(600):
        NeighbourIndex.open(database, "HNSW4,Flat", progress=False)
    assert caught.value.filename == str(database.path / "index" / "index.faiss")
    assert contents(database.path / "index") == before
    queries = np.asarray(database.embeddings(np.arange(3)), np.float32)
    assert np.array_equal(NeighbourIndex.open(database).search(queries, 2).rows, index.search(queries, 2).rows)
    images = instantiate_from_config(source)
    with pytest.raises(OSError, match="neighbours.partial.npy"), small_files(200):
        prepare_neighbour_table(tmp_path / "table", images, ProjectionEmbedder(), database, index, k=4, progress=False)
    assert [name for name in contents(tmp_path / "table") if name.endswith(".lock")] == []
