"""The sampling scripts on the command line: the options of CompVis' scripts, and one-line errors."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.config import read_config, write_config
from rdm.loading import Loaded

ROOT = Path(__file__).parents[3]
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loaded: Loaded, tmp_path: Path) -> Run:
    """Returns a function that runs a script on the tiny model and returns the last line of its output or error."""

    def call(script: str, *words: object) -> str:
        given = ["--ckpt", loaded.path, "--outdir", tmp_path / "out", "--steps", 1, *words]
        monkeypatch.setattr(sys, "argv", [script, *map(str, given)])
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            complaint = capsys.readouterr().err
            assert "Traceback" not in complaint
            return complaint.splitlines()[-1]
        return capsys.readouterr().out.strip()

    return call


def record(grid: str) -> dict[str, Any]:
    return json.loads(Path(grid.replace("-grid.png", ".json")).read_text())


def test_txt2img_takes_what_compvis_script_takes(run: Run, tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "prompts.txt").write_text("white flag\n\npirate flag\n", encoding="utf-8-sig")
    words = ["--from-file", tmp_path / "prompts.txt", "--ddim_steps", 2, "--plms", "--ddim_eta", 0, "--n_iter", 2]
    words += ["--H", 16, "--W", 32, "--n_samples", 1, "--n_rows", 3, "--scale", 3, "--use_neighbors", "--knn", 3]
    words += ["--config", loaded.path.parent / "config.yaml", "--database", loaded.retriever.database.path]
    grid = run("txt2img.py", *words)
    assert Image.open(grid).size == (2 + 3 * (32 + 2), 2 + 2 * (16 + 2))  # width, height
    found = record(grid)
    settings = {key: found["settings"][key] for key in ("sampler", "steps", "eta", "scale", "height", "width")}
    assert settings == {"sampler": "plms", "steps": 2, "eta": 0.0, "scale": 3.0, "height": 16, "width": 32}
    assert found["tokens"] == "both"
    assert [image["query"] for image in found["images"]] == ["white flag", "pirate flag"] * 2
    assert [image["seed"] for image in found["images"]] == [0, 1, 2, 3]
    assert len(found["images"][0]["neighbours"]) == 3
    again = run("sample.py", "--from-image", tmp_path / "out" / "txt2img-002.png")
    assert Path(again.replace("-grid", "-000")).read_bytes() == (tmp_path / "out" / "txt2img-002.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "tokens", "neighbours"),
    [([], "both", 2), (["--omit_query"], "neighbours", 3), (["--only_caption"], "text", 3), (["--k_nn", 1], "text", 1)],
)
def test_sample_takes_what_compvis_script_takes(run: Run, words: list, tokens: str, neighbours: int) -> None:
    """In CompVis' script, the caption counts as one of its own neighbours."""
    given = ["--caption", "white flag", "--k_nn", 3, "--guidance_scale", 3, "--seed", 5, "--n_samples", 1, *words]
    found = record(run("sample.py", *given))
    assert (found["settings"]["scale"], found["tokens"]) == (3.0, tokens)
    assert len(found["images"][0]["neighbours"]) == neighbours and found["images"][0]["seed"] == 5
    plain = record(run("sample.py", "--top_m", "0.5", "--use_weights", "--n_samples", 1, "--n_iter", 2))
    assert plain["asked"] == {"way": "popular", "k": 2, "top_m": 0.5, "weighted": True} and len(plain["images"]) == 2


def test_neighbours_are_written_beside_the_images(run: Run, tmp_path: Path, loaded: Loaded) -> None:
    words = ["--prompt", "white flag", "--n_samples", 1, "--knn", 2, "--save_nns", "--W", 32]
    grid = np.asarray(Image.open(run("txt2img.py", *words)))
    found = record(str(tmp_path / "out/txt2img-grid.png"))["images"][0]["neighbours"]
    for place, neighbour in enumerate(found):
        with Image.open(tmp_path / "out" / f"txt2img-000-neighbour-{place}.png") as opened:
            about, pixels = json.loads(opened.text["rdm"]), np.asarray(opened)
        assert np.array_equal(pixels, loaded.retriever.database.patches([neighbour["row"]])[0])
        assert about["licence"] == neighbour["licence"] and about["row"] == neighbour["row"]
        left = 2 + (place + 1) * 34 + 8  # centred in a cell as wide as the image
        assert np.array_equal(grid[2:18, left : left + 16], pixels)


@pytest.mark.parametrize(
    ("words", "tokens", "columns"),
    [([], "neighbours", 3), (["--only_picture"], "picture", 1), (["--use_query"], "both", 3)],
)
def test_a_picture_from_the_command_line(run: Run, tmp_path: Path, words: list, tokens: str, columns: int) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    grid = run("sample.py", "--image", tmp_path / "red.png", "--knn", 2, "--n_samples", 2, *words)
    assert record(grid)["tokens"] == tokens
    assert Image.open(grid).size == (2 + columns * 18, 2 + 2 * 18)  # no neighbours if the model saw none


def test_a_strip_from_the_command_line(run: Run) -> None:
    grid = run("txt2img.py", "--prompt", "white flag", "--to", "pirate flag", "--n_samples", 3)
    assert Image.open(grid).size == (2 + 3 * 18, 2 + 18)
    assert record(grid)["asked"] == {"way": "between", "k": 2, "start": "white flag", "end": "pirate flag"}
    assert run("txt2img.py", "--prompt", "a", "--prompt", "b", "--to", "c").startswith(
        "error: got --to with several prompts"
    )


def test_classes_by_label_from_the_command_line(run: Run) -> None:
    found = record(run("class2img.py", "--class", "flag", "--by", "label", "--n_samples", 2, "--knn", 2))
    assert found["asked"] == {"way": "class", "by": "label", "k": 2}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("txt2img.py", ["--prompt", "white flag", "--use_query"]),
        ("class2img.py", ["--class", "flag"]),
        ("sample.py", ["--top_m", "0.5"]),
        ("sample.py", ["--rows", 3, 7]),
    ],
)
def test_the_best_of_several_from_the_command_line(run: Run, script: str, words: list) -> None:
    grid = run(script, *words, "--n_samples", 2, "--best_of", 3, "--copy_threshold", 1.1)
    assert record(grid)["settings"]["best_of"] == 3
    for place, image in enumerate(record(grid)["images"]):
        scores = {each["seed"]: each["score"] for each in image["candidates"]}
        assert len(scores) == 3 and place in scores
        assert image["score"] == scores[image["seed"]] == max(scores.values())
    made = Path(grid.replace("-grid", "-001"))
    again = run("sample.py", "--from-image", made)
    assert Path(again.replace("-grid", "-000")).read_bytes() == made.read_bytes()
    alone = record(run(script, *words, "--n_samples", 2))
    assert alone["settings"]["best_of"] == 1 and all("candidates" not in image for image in alone["images"])


def test_another_config_is_part_of_the_record(run: Run, tmp_path: Path, loaded: Loaded) -> None:
    config = read_config([loaded.path.parent / "config.yaml"])
    config["model"]["params"]["parameterization"] = "x0"
    other = tmp_path / "other.yaml"
    write_config(other, config)
    words = ["--prompt", "white flag", "--n_samples", 1, "--no_copy_check", "--steps", 4]
    plain = Image.open(run("txt2img.py", *words).replace("-grid", "-000")).tobytes()
    grid = run("txt2img.py", *words, "--config", other)
    made = Path(grid.replace("-grid", "-000"))
    assert Image.open(made).tobytes() != plain
    again = run("sample.py", "--from-image", made)
    assert Path(again.replace("-grid", "-000")).read_bytes() == made.read_bytes()
    other.write_text(other.read_text() + "# changed\n")
    assert "other.yaml has fingerprint" in run("sample.py", "--from-image", made)


@pytest.mark.parametrize(
    ("script", "words", "line"),
    [
        (
            "txt2img.py",
            ["--prompt", "flag", "--database", "data/none"],
            "error: no finished database at data/none; build it with scripts/build_database.py --output data/none",
        ),
        ("txt2img.py", ["--prompt", ""], "argument --prompt/--caption: got an empty prompt, expected some words"),
        ("txt2img.py", [], "error: no prompt; give --prompt TEXT, or --from-file FILE with one in each line"),
        ("sample.py", ["--caption", " "], "error: got an empty prompt, expected some words"),
        (
            "txt2img.py",
            ["--prompt", "flag " * 40],
            "error: the text 'flag flag flag flag flag flag flag flag ...' has 42 tokens, the model reads 12; shorten",
        ),
        ("txt2img.py", ["--prompt", "flag", "--to", "flag " * 11], "has 13 tokens, the model reads 12; shorten it"),
        ("txt2img.py", ["--prompt", "flag", "--knn", "0"], "got knn=0, expected a whole number of at least 1"),
        (
            "txt2img.py",
            ["--prompt", "flag", "--knn", "41"],
            "error: got k=41, expected 1 to 40",
        ),
        (
            "txt2img.py",
            ["--prompt", "flag", "--H", "31"],
            "error: got images of 31 x 16 pixels (height x width), expected multiples of 2: the first stage divides "
            "sides by 2, the U-Net by 1",
        ),
        (
            "txt2img.py",
            ["--prompt", "flag", "--text_scale", "3"],
            "error: got text_scale=3.0 with tokens 'neighbours', expected tokens 'both', which are --use_query",
        ),
        ("sample.py", ["--only_caption"], "error: got only_caption=True without caption, which it needs"),
        ("sample.py", ["--use_query"], "error: got use_query=True without image, which it needs"),
        ("sample.py", ["--rows", "3", "--caption", "flag"], "argument --caption: not allowed with argument --rows"),
        ("txt2img.py", ["--prompt", "flag", "--config", "none.yaml"], "error: no config at none.yaml; give the file"),
        ("class2img.py", ["--class", "flags/flag", "--by", "label", "--knn", "41"], "has 40 rows, expected at least"),
        ("class2img.py", ["--class", "submarine"], "has no class 'submarine'"),
        (
            "txt2img.py",
            ["--prompt", "flag", "--reject-copies", "2", "--no_copy_check"],
            "got reject_copies=2 without",
        ),
        (
            "txt2img.py",
            ["--prompt", "flag", "--best_of", "0"],
            "--best_of: got best_of=0, expected a whole number of at least 1",
        ),
        ("sample.py", ["--best_of", "-2"], "argument --best_of: got best_of=-2, expected a whole number of at least 1"),
        (
            "txt2img.py",
            ["--prompt", "flag", "--to", "pirate", "--best_of", "2"],
            "error: got best_of=2 for images that share one seed, expected 1",
        ),
        (
            "sample.py",
            ["--from-image", "a.png", "--best_of", "2"],
            "error: got --best_of with --from-image, expected it",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run: Run, script: str, words: list[str], line: str) -> None:
    assert line in run(script, *words)


def test_guidance_by_an_untrained_null_is_said(
    run: Run, tmp_path: Path, loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    config = read_config([loaded.path.parent / "config.yaml"])
    config["model"]["params"]["p_uncond"] = 0.0
    write_config(tmp_path / "config.yaml", config)
    shutil.copy(loaded.path, tmp_path / "model.safetensors")
    words = ("txt2img.py", "--ckpt", tmp_path, "--prompt", "white flag", "--n_samples", 1)
    run(*words, "--scale", 1)
    assert "null" not in caplog.text
    run(*words, "--scale", 2)
    assert "p_uncond is 0" in caplog.text
