"""Whole exports, and their way to the hub and back through a small server with the hub's routes."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import hub
from pictures import contents, write_pictures
from toy import plain_config, rdm_config, references_config, ship

import rdm
from ldm.config import read_config
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.ways import popular
from scripts import export_checkpoint

NAME = "hf:someone/flags"


def script(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["export_checkpoint.py", *map(str, words)])
    export_checkpoint.main.__wrapped__()  # type: ignore[attr-defined]


def trained(folder: Path, make: Any = rdm_config) -> Path:
    """Returns an untrained run with a database of twelve pictures."""
    config = make(folder)
    images = write_pictures(folder / "pictures", 12)
    images["params"]["size"] = 16
    data = config["data"]["params"]
    data |= {"train": images, "validation": images}
    if "database" in data:
        data["database"]["source"] = images
    run = ship(folder / "run", config)
    rdm.load(str(run))
    (run / "metrics.csv").write_text("step,train/loss,val/loss\n1,0.5,\n2,,0.25\n")
    (run / "README.md").write_text(
        "# Notes\n\nSee [the guide](../docs/guide.md) and [a page](https://example.org/a).\n"
    )
    return run


def image(model: Any) -> np.ndarray:
    """Returns an image of a model, in the numbers of its pixels."""
    return np.asarray(model("a red flag", steps=2, copy_threshold=None)[0], dtype=int)


def test_a_whole_folder_loads_where_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the pictures of the neighbours, after it moved, and without what it was made from."""
    old = tmp_path / "old"
    run = trained(old, references_config)
    script(monkeypatch, run, "--whole", "--float32", "--output", old / "out", "--licence", "mit")
    expected = rdm.load(str(run))
    images = image(expected)
    shutil.move(old / "out", tmp_path / "moved")
    shutil.rmtree(old)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "moved", "moved"):
        found = rdm.load(str(path))
        assert found.retriever.database.fingerprint == expected.retriever.database.fingerprint
        assert np.abs(image(found) - images).max() <= 1
        assert len(found.retriever.database.patches([0, 11])) == 2
        assert len(sample(found, popular(found, 2), Settings(steps=1, copy_threshold=None)).images) == 2
    assert all(str(old) not in text for text in (repr(found.data.database_config), repr(found.data.embedder_config)))


def test_the_card_has_metadata_and_the_record_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    script(monkeypatch, run, "--whole", "--output", tmp_path / "out", "--licence", "cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    from huggingface_hub import ModelCard

    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.license == "cc-by-4.0" and "retrieval-augmented" in data.tags
    for line in ("| last step | 2 |", "| last val/loss | 0.25 |", "| neighbours | 2 |", "| unknown | 12 |"):
        assert line in card, line
    assert "See the guide and [a page](https://example.org/a)." in card


def test_what_is_larger_than_the_limit_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path)
    script(monkeypatch, run, "--whole", "--part-limit", "0", "--output", tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(each.name for each in out.iterdir()) == [
        "README.md",
        "config.yaml",
        "database.yaml",
        "model.safetensors",
    ]
    card = (out / "README.md").read_text()
    assert "| embedder | not here:" in card and "scripts/build_database.py --config database.yaml" in card
    assert len(image(rdm.load(str(out)))) == 16  # all that it names is here
    database = tmp_path / "database"
    database.rename(tmp_path / "lost")
    with pytest.raises(FileNotFoundError, match=r"without its database .*build_database.py --config .*database.yaml"):
        rdm.load(str(out))
    assert not database.exists()
    assert read_config([out / "database.yaml"]).keys() == {"embedder", "database"}


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    with hub(tmp_path / "hub", tmp_path / "cache", monkeypatch) as server:
        script(monkeypatch, run, "--push", NAME, "--float32", "--output", tmp_path / "out")
        assert server.files("someone/flags") == contents(tmp_path / "out")
        assert server.visibility == {"someone/flags": "private"}
        assert any("objects/batch" in each for each in server.asked)
        (server.root / "someone/flags" / "last.ckpt").write_bytes(b"a pickle")
        (server.root / "someone/flags" / "evil.py").write_text("raise SystemExit")
        model = rdm.load(NAME)
        assert (image(model) == image(rdm.load(str(run)))).all()
        assert not [each for each in (tmp_path / "cache").rglob("*") if each.suffix in (".ckpt", ".py")]
        assert not (model.retriever.database.path / "index").exists()
        assert rdm.load(f"{NAME}@v1").path.name == "model.safetensors"
        server.asked.clear()
        with pytest.raises(ValueError, match="has no revision 'v7'"):
            rdm.load(f"{NAME}@v7")
        with pytest.raises(ValueError, match="hf:someone/else: there is no such repository or no right to read it"):
            rdm.load("hf:someone/else")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (image(rdm.load(NAME)) == image(model)).all()  # from the cache


def test_a_script_takes_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts import txt2img

    run = trained(tmp_path)
    with hub(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        script(monkeypatch, run, "--push", NAME, "--output", tmp_path / "out")
        words = [
            "txt2img.py",
            "--ckpt",
            NAME,
            "--prompt",
            "a flag",
            "--steps",
            "1",
            "--outdir",
            str(tmp_path / "images"),
        ]
        monkeypatch.setattr("sys.argv", words)
        txt2img.main.__wrapped__()  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "images" / "txt2img.json").read_text())["images"]


def test_a_pipeline_of_diffusers_is_pushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    with hub(tmp_path / "hub", tmp_path / "cache", monkeypatch) as server:
        script(monkeypatch, run, "--to", "diffusers", "--push", NAME, "--output", tmp_path / "out")
        assert {"model_index.json", "pipeline.py", "retriever/rows.safetensors", "README.md"} <= {
            *server.files("someone/flags")
        }


def test_a_plain_model_goes_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ship(tmp_path / "run", plain_config(tmp_path, "texts"))
    script(monkeypatch, run, "--whole", "--output", tmp_path / "out")
    shutil.rmtree(tmp_path / "clip")
    assert rdm.load(str(tmp_path / "out")).is_plain
    assert (tmp_path / "out" / "clip" / "open_clip_config.json").is_file()


def test_without_a_network_each_says_what_it_would_have_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # where nobody listens
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        with pytest.raises(FileNotFoundError, match="would have pushed .* files, .* MB .*model.safetensors") as caught:
            script(monkeypatch, run, "--push", NAME, "--output", tmp_path / f"out{offline}")
        assert "\n" not in str(caught.value) and (tmp_path / f"out{offline}" / "README.md").is_file()
        with pytest.raises(FileNotFoundError, match=r"would have downloaded its files \*.safetensors") as caught:
            rdm.load(NAME)
        assert "\n" not in str(caught.value) and NAME in str(caught.value)


def test_a_missing_login_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path)
    with hub(tmp_path / "hub", tmp_path / "cache", monkeypatch, token=None) as server:
        with pytest.raises(ValueError, match="no right to write it .* would have pushed .* files") as caught:
            script(monkeypatch, run, "--push", NAME, "--output", tmp_path / "out")
        assert "\n" not in str(caught.value) and server.files("someone/flags") == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--push", "someone"), "expected hf:owner/name"),
        (("--push", "hf:some one/x"), "expected hf:owner/name"),
        (("--push", "hf:a/b@"), "expected hf:owner/name"),
        (("--whole", "--to", "compvis"), "--whole and --push write safetensors or diffusers"),
        (("--only", "licence=MIT"), "--only has an effect with --to diffusers --whole"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        script(monkeypatch, tmp_path / "run", *words, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
