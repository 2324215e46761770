from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from pictures import bomb, write_clip, write_pictures

from ldm.config import read_config
from ldm.util import check_params, get_obj_from_str
from rdm.retrieval.config import check_database
from rdm.retrieval.patches.policy import Patches

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Returns a function that runs a script in this process and returns its output, or its one-line error."""

    def call(script: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1
            return errors[0]
        return capsys.readouterr().out.strip()

    return call


def test_from_pictures_to_neighbours(run, tmp_path: Path) -> None:
    clip, db, pictures = write_clip(tmp_path / "clip"), tmp_path / "db", tmp_path / "pictures"
    write_pictures(pictures, 11)
    build = ("build_database.py", "--source", pictures, "--size", 8, "--embedder", clip, "--output", db)
    assert run(*build) == f"{db}: 11 rows of 8 numbers, index Flat"
    assert run(*build) == f"{db}: 11 rows of 8 numbers, index Flat"
    search = ("search_neighbors.py", "--database", db, "--images", pictures, "--size", 8, "--embedder", clip)
    options = ("--k", 3, "--near-duplicate", 2)
    assert run(*search, *options) == f"{db}/neighbours/train: 11 pictures, 3 neighbours each"
    rows = np.load(db / "neighbours/train/neighbours.npy")
    assert rows.shape == (11, 3)
    assert (rows != np.arange(11)[:, None]).all()
    run(*search, *options, "--patches-per-side", 2, "--output", tmp_path / "patches")
    assert np.load(tmp_path / "patches/neighbours.npy").shape == (11, 4, 3)
    message = run(*search, "--k", 11, "--near-duplicate", 2)
    assert "has 10 neighbours" in message and "k=11" in message


def test_a_living_database(run, tmp_path: Path) -> None:
    clip, db, pictures = write_clip(tmp_path / "clip"), tmp_path / "db", tmp_path / "pictures"
    write_pictures(pictures, 11)
    given = ("--source", pictures, "--size", 8, "--embedder", clip, "--output", db)
    said = run("build_database.py", "build", *given)
    assert run("build_database.py", *given) == said == f"{db}: 11 rows of 8 numbers, index Flat"
    search = ("search_neighbors.py", "--database", db, "--images", pictures, "--size", 8, "--embedder", clip)
    run(*search, "--k", 3)
    assert run("build_database.py", "verify", db).splitlines() == [
        f"{db}: shards: 1 with 11 rows, 0 of them removed",
        f"{db}: index: Flat over 11 rows",
        f"{db}: neighbours/train: 11 pictures, 3 neighbours each, 100.0% of them not removed",
    ]
    rules = ("remove", db, "--id", "class0/000.png", "class1/001.png", "--source", f"{pictures}/class1/00")
    assert run("build_database.py", *rules, "--dry-run").startswith(f"{db}: 6 rows would be removed; 6 rows match, 0 ")
    assert run("build_database.py", *rules) == f"{db}: 6 rows removed; 6 rows match, 0 were removed before"
    assert run("build_database.py", *rules, "--where", "class_id=class1", "item=1", "--dry-run") == (
        f"{db}: 1 rows would be removed; 7 rows match, 6 were removed before"
    )
    assert run("build_database.py", "compact", db) == f"{db}: 5 rows of 8 numbers, index Flat"
    assert run("build_database.py", "append", *given) == f"{db}: 11 rows of 8 numbers, index Flat"
    both = tmp_path / "both"
    assert run("build_database.py", "merge", db, db, "--output", both, "--drop-duplicates").splitlines() == [
        f"{both}: 22 rows of 8 numbers, index Flat",
        f"{both}: 11 rows have the pixels of an earlier row, 0 nearly (cosine at least 0.999), see duplicates.csv; "
        "11 of them removed",
    ]
    assert run("build_database.py", "compact", both) == f"{both}: 11 rows of 8 numbers, index Flat"
    message = run("build_database.py", "verify", db)
    assert f"{db}/neighbours/train" in message and "with fingerprint" in message


def test_single_pictures_are_added_and_the_database_says_what_it_is(run, tmp_path: Path) -> None:
    clip, db, pictures = write_clip(tmp_path / "clip"), tmp_path / "db", tmp_path / "pictures"
    write_pictures(pictures, 11)
    run("build_database.py", "--source", pictures, "--size", 8, "--embedder", clip, "--output", db)
    write_pictures(tmp_path / "more", 2, seed=1)
    more = sorted((tmp_path / "more").rglob("*.png"))
    known = ("--licence", "CC0-1.0", "--attribution", "A. Uthor", "--embedder", clip)
    said = run("build_database.py", "add", db, *more, *known)
    assert said == f"{db}: added rows 11 to 12; 13 rows, index Flat"
    assert "picture 1 has the pixels of row 11" in run("build_database.py", "add", db, more[0], *known)
    run("build_database.py", "remove", db, "--licence", "CC0-1.0")
    rows, licences, sources, index, _ = run("build_database.py", "show", db).splitlines()
    assert rows.startswith(f"{db}: 11 rows of 8 numbers, made by ") and rows.endswith(", 2 more are removed")
    assert licences == f"{db}: licences: unknown 11" and f"{pictures}/class0/ 6" in sources
    assert index.startswith(f"{db}: index: Flat (exact)")


def test_an_addition_goes_on_that_was_killed_before_the_index_was_built(run, tmp_path: Path) -> None:
    clip, db = write_clip(tmp_path / "clip"), tmp_path / "db"
    write_pictures(tmp_path / "pictures", 11)
    run("build_database.py", "--source", tmp_path / "pictures", "--size", 8, "--embedder", clip, "--output", db)
    write_pictures(tmp_path / "more", 2, seed=1)
    more = sorted((tmp_path / "more").rglob("*.png"))
    known = ("--licence", "CC0-1.0", "--attribution", "A. Uthor", "--embedder", clip)
    shutil.copytree(db / "index", tmp_path / "index")
    said = run("build_database.py", "add", db, *more, *known)

    def is_killed() -> None:
        shutil.rmtree(db / "index")
        shutil.copytree(tmp_path / "index", db / "index")

    is_killed()
    assert said == f"{db}: added rows 11 to 12; 13 rows, index Flat"
    for _ in range(2):  # also if it was killed when everything was done
        again = run("build_database.py", "add", db, *more, *known)
        assert again == f"{db}: rows 11 to 12 are these pictures; 13 rows, index Flat"
    assert f"{db}: index: Flat over 13 rows" in run("build_database.py", "verify", db)
    for other in ((more[0],), (more[1], more[0]), (*more, "--caption", "noise")):  # what was not asked for before
        is_killed()
        assert "has the pixels of row" in run("build_database.py", "add", db, *other, *known)


def test_duplicates_are_listed_before_the_index_is_there(run, tmp_path: Path) -> None:
    """A build that stops in between therefore lists them when it goes on."""
    clip, db, pictures = write_clip(tmp_path / "clip"), tmp_path / "db", tmp_path / "pictures"
    write_pictures(pictures, 4)
    shutil.copyfile(pictures / "class0/000.png", pictures / "class1/copy.png")
    build = ("build_database.py", "--source", pictures, "--size", 8, "--embedder", clip, "--output", db)
    run(*build)
    said = (db / "duplicates.csv").read_text()
    shutil.rmtree(db / "index")
    (db / "duplicates.csv").unlink()
    (db / "duplicates.csv").mkdir()  # so that it cannot be written
    assert "duplicates.csv" in run(*build)
    assert not (db / "index").exists()
    (db / "duplicates.csv").rmdir()
    assert "1 rows have the pixels of an earlier row" in run(*build)
    assert (db / "duplicates.csv").read_text() == said and (db / "index/index.json").is_file()


def test_imports(run, tmp_path: Path) -> None:
    rng, db = np.random.default_rng(0), tmp_path / "db"
    rows = {"embedding": rng.standard_normal((6, 8)), "img_id": np.arange(6), "patch_coords": np.ones((6, 4), int)}
    np.savez_compressed(tmp_path / "part_1.npz", **rows)
    embedder = {
        "target": "ldm.modules.encoders.modules.OpenClipEmbedder",
        "params": {"model": write_clip(tmp_path / "c")},
    }
    OmegaConf.save({"embedder": embedder}, tmp_path / "embedder.yaml")
    given = ("import", tmp_path / "part_1.npz", "--output", db)
    assert "--config FILE" in run("build_database.py", *given)
    said = run("build_database.py", *given, "--config", tmp_path / "embedder.yaml")
    assert said == f"{db}: 6 rows of 8 numbers, index Flat"
    (tmp_path / "memory.p").write_bytes(pickle.dumps({"nn_memory": np.array([5, 1]), "id_count": {5: 7, 1: 2}}))
    said = run("build_database.py", "import", tmp_path / "memory.p", "--output", db)
    assert said == f"{db}: 2 of 6 rows are neighbours of a picture, 9 times in total"
    assert run("build_database.py", "verify", db).splitlines()[0] == f"{db}: shards: 1 with 6 rows, 0 of them removed"


def test_wrong_commands_are_one_line(run, tmp_path: Path) -> None:
    clip, db, pictures = write_clip(tmp_path / "clip"), tmp_path / "db", tmp_path / "pictures"
    write_pictures(pictures, 11)
    given = ("--source", pictures, "--size", 8, "--embedder", clip, "--output", db)
    for command in (("remove",), ("compact",), ("verify",), ("merge", "--output", tmp_path / "both", db)):
        assert f"{db}; build it with" in run("build_database.py", *command, db)
    run("build_database.py", *given)
    assert "--id, --source, --licence, --where" in run("build_database.py", "remove", db)
    assert "--where: got 'class0'" in run("build_database.py", "remove", db, "--where", "class0")
    assert "'colour'" in run("build_database.py", "remove", db, "--where", "colour=red")
    assert "1 databases" in run("build_database.py", "merge", db, "--output", tmp_path / "both")
    shutil.copytree(db, tmp_path / "db3")
    run("build_database.py", "remove", tmp_path / "db3", "--id", "class0/000.png")
    run("build_database.py", "compact", tmp_path / "db3")
    shutil.copytree(db / "index", tmp_path / "db3/index", dirs_exist_ok=True)
    assert f"index {tmp_path}/db3/index belongs" in run("build_database.py", "verify", tmp_path / "db3")
    shard = db / "embeddings/00000.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    index = db / "index/index.faiss"
    index.write_bytes(index.read_bytes()[:-1])
    message = run("build_database.py", "verify", db)
    assert "00000.npy" in message and "index.faiss" in message
    other = write_clip(tmp_path / "other", seed=1)
    message = run("build_database.py", "append", *given[:4], "--embedder", other, "--output", db)
    assert "embedder" in message and "fingerprint" in message
    (tmp_path / "bombs").mkdir()
    (tmp_path / "bombs/bomb.png").write_bytes(bomb())
    message = run("build_database.py", "--source", tmp_path / "bombs", *given[2:6], "--output", tmp_path / "db2")
    assert "1 images of ldm.data.ImageFolder" in message and "1 are unreadable" in message
    assert "1 rows removed" in run("build_database.py", "remove", db, "--id", "class0/000.png")
    assert "00000.npy" in run("build_database.py", "compact", db)  # compact refuses damaged shards
    shard.write_bytes(data[:-9])
    assert "00000.npy" in run("build_database.py", "verify", db)


def test_from_configs(run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    embedder = {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": clip}}
    database = {"path": str(tmp_path / "db"), "source": write_pictures(tmp_path / "pictures", 11)}
    OmegaConf.save({"embedder": embedder, "database": database}, tmp_path / "db.yaml")
    params = {"batch_size": 2, "embedder": embedder, "database": database, "stored_k": 4}
    data = {
        "target": "rdm.data.RetrievalDataModule",
        "params": {**params, "train": write_pictures(tmp_path / "train", 5, seed=1)},
    }
    OmegaConf.save({"data": data}, tmp_path / "rdm.yaml")
    said = run("build_database.py", "--config", tmp_path / "db.yaml", "database.shard_rows=4")
    assert said == f"{tmp_path}/db: 11 rows of 8 numbers, index Flat"
    card = json.loads((tmp_path / "db/database.json").read_text())
    assert [shard["rows"] for shard in card["shards"]] == [4, 4, 3]
    said = run("search_neighbors.py", "--config", tmp_path / "rdm.yaml", "--k", 5)
    assert said == f"{tmp_path}/db/neighbours/train: 5 pictures, 5 neighbours each"
    words = ("search_neighbors.py", "--config", tmp_path / "rdm.yaml", "data.params.caption_share=0.5")
    assert "none of 5 images has a caption, such as 'class0/000.png'" in run(*words)
    for number in range(5):
        (tmp_path / f"train/class{number % 2}/{number:03d}.txt").write_text("a text", encoding="utf-8")
    assert run(*words).splitlines()[1:] == [f"{tmp_path}/db/neighbours/train-captions: 5 pictures, 4 neighbours each"]


def test_wrong_input_is_one_line(run, tmp_path: Path) -> None:
    assert "--config FILE or --source" in run("build_database.py")
    assert "nothing.yaml" in run("build_database.py", "--config", tmp_path / "nothing.yaml")
    OmegaConf.save({"embedder": {}}, tmp_path / "half.yaml")
    assert "'database'" in run("build_database.py", "--config", tmp_path / "half.yaml")
    OmegaConf.save({"embedder": {}, "database": {"pth": "db"}}, tmp_path / "typo.yaml")
    assert "'pth'; did you mean 'path'" in run("build_database.py", "--config", tmp_path / "typo.yaml")
    OmegaConf.save({"data": {"target": "ldm.data.DataModule"}}, tmp_path / "plain.yaml")
    said = run("search_neighbors.py", "--config", tmp_path / "plain.yaml")
    assert "ldm.data.DataModule, expected rdm.data.RetrievalDataModule" in said
    (tmp_path / "empty").mkdir()
    clip, source = write_clip(tmp_path / "clip"), ("build_database.py", "--source", tmp_path / "empty")
    assert "no image below" in run(*source, "--embedder", clip, "--output", tmp_path / "db")
    assert "--source without --output" in run(*source, "--embedder", clip)
    assert "--config FILE or --database" in run("search_neighbors.py", "--database", tmp_path)
    search = ("search_neighbors.py", "--database", tmp_path / "db", "--images", tmp_path / "empty")
    assert f"{tmp_path}/db; build it with" in run(*search, "--embedder", clip)


def test_wrong_sections_are_one_line(run, tmp_path: Path) -> None:
    OmegaConf.save({"embedder": {}, "database": "abc", "data": "abc"}, tmp_path / "a.yaml")
    for script, section in (("build_database.py", "database"), ("search_neighbors.py", "data")):
        assert f"{section}: got 'abc'" in run(script, "--config", tmp_path / "a.yaml")


@pytest.mark.parametrize("script", ["build_database.py", "search_neighbors.py"])
def test_help_is_quick(script: str) -> None:
    start = time.perf_counter()
    command = [sys.executable, f"scripts/{script}", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 5  # takes about 0.1 s, and more on a busy machine
    assert "--config" in said.stdout


@pytest.mark.parametrize("name", ["imagenet", "openimages"])
def test_a_config_of_a_large_database_fits_its_source_and_the_models(name: str) -> None:
    config = read_config([ROOT / f"configs/database/{name}.yaml"])
    check_database(config["database"])
    source = config["database"]["source"]
    check_params(source["target"], get_obj_from_str(source["target"]), source["params"])
    Patches(config["database"].get("patches"))
    trained = {model: read_config([ROOT / f"configs/rdm/{model}.yaml"]) for model in ("imagenet", "ffhq")}
    for model in trained if name == "openimages" else ():
        params = trained[model]["data"]["params"]
        assert {"embedder": params["embedder"], "database": params["database"]} == config, model


def test_the_shipped_config_names_what_exists() -> None:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/database/emoji.yaml"))
    assert isinstance(config, dict)
    assert set(config) == {"embedder", "database"}
    assert (ROOT / config["database"]["source"]["params"]["files"]).is_dir()
