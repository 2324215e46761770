"""The report on concepts: figures that are known beforehand, files, and error messages."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from concepts import HELD_OUT, NAMES, concept_configs, stubborn_judge, write_concepts
from PIL import Image
from toy import plain_config, ship

from ldm.util import instantiate_from_config
from rdm.evaluate.concepts import data_configs, judgement, summary
from rdm.loading import Loaded
from rdm.models.judge import load_judge

ROOT = Path(__file__).parents[3]
Run = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_concepts(tmp_path / "data" / "squares.parquet")
    return tmp_path / "data" / "squares.parquet"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loaded: Loaded, tmp_path: Path) -> Run:
    """Runs the report on the tiny model, or on another one; returns its output, or its error message."""

    def call(*words: object, model: Path = loaded.path) -> str:
        given = ["concepts", model, "--outdir", tmp_path / "out", "--steps", 1, *words]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, given)])
        try:
            runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            complaint = capsys.readouterr().err
            assert "Traceback" not in complaint
            return complaint.splitlines()[-1]
        return capsys.readouterr().out

    return call


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_figures_of_a_judge_that_always_gives_the_same_order(run: Run, file: Path, tmp_path: Path) -> None:
    """It finds c likeliest, which has the name of a; then e, b, d, f, and a last."""
    judge = stubborn_judge(tmp_path / "judge", file, "cebdfa")
    output = run("--judge", judge, "--n", 10, "--n_real", 1000)
    report = report_in(tmp_path / "out")
    figures = report["figures"]
    # Of the trained a, b, c, d, two have the likeliest name; of the held-out e and f, none. All five names are among
    # the likeliest five.
    assert figures["trained"] == {"n": 4, "top1": 0.5, "top5": 1.0}
    assert figures["held-out"] == {"n": 2, "top1": 0.0, "top5": 1.0}
    real = instantiate_from_config(concept_configs(file)["validation"])
    shown = [real.metadata(i)["concept"] for i in range(len(real))]
    share = round(sum(NAMES[concept] == "disc" for concept in shown) / len(shown), 4)
    assert 0 < share < 1
    assert figures["real"] == figures["reconstructions"] == {"n": len(shown), "top1": share, "top5": 1.0}
    assert figures["ratio to real"]["trained"] == {"top1": round(0.5 / share, 4), "top5": 1.0}
    assert [one["prompt"] for one in report["samples"]["held-out"]] == [NAMES[concept] for concept in HELD_OUT]
    assert [one["rank"] for one in report["samples"]["trained"]] == [1, 3, 1, 4]
    assert {one["judged"] for one in report["samples"]["trained"]} == {"disc"}
    assert report["protocol"]["judge"]["concepts"] == 6
    for group, count in (("trained", 4), ("held-out", 2)):
        pictures = sorted((tmp_path / "out" / "samples" / group).glob("*.png"))
        assert [picture.name for picture in pictures] == [f"{seed:06d}.png" for seed in range(count)]
        assert Image.open(tmp_path / "out" / f"{group}.png").width > 8 * 16
    assert "50.0% +- 25.0%" in output and output.splitlines()[-1].endswith("results.json")
    assert output.splitlines()[:-1] == summary(report)


def test_a_model_of_texts_without_retrieval_is_judged(run: Run, file: Path, tmp_path: Path) -> None:
    judge = stubborn_judge(tmp_path / "judge", file, "cebdfa")
    model = ship(tmp_path / "model", plain_config(tmp_path, "texts"))
    run("--judge", judge, "--n", 2, "--n_real", 3, model=model)
    report = report_in(tmp_path / "out")
    assert [one["prompt"] for one in report["samples"]["trained"]] == ["disc", "frame"]
    assert report["protocol"]["samples"]["trained"]["asked"]["way"] == "text"
    unconditional = ship(tmp_path / "other", plain_config(tmp_path / "b", None))
    assert "is unconditional, expected a model that reads texts" in run("--judge", judge, model=unconditional)


def test_samples_of_an_earlier_call_are_kept(run: Run, file: Path, tmp_path: Path) -> None:
    judge = stubborn_judge(tmp_path / "judge", file, "abcdef")
    run("--judge", judge, "--n", 2, "--n_real", 3)
    first, sample = report_in(tmp_path / "out"), tmp_path / "out" / "samples" / "trained" / "000000.png"
    assert [one["prompt"] for one in first["samples"]["trained"]] == ["disc", "frame"]  # spread evenly: a and d
    written = sample.stat().st_mtime_ns
    run("--judge", judge, "--n", 2, "--n_real", 3)
    assert sample.stat().st_mtime_ns == written
    assert report_in(tmp_path / "out")["figures"] == first["figures"]
    run("--judge", judge, "--n", 2, "--n_real", 3, "--scale", 3)
    assert sample.stat().st_mtime_ns != written


def test_a_judge_is_asked_about_each_picture_by_itself(file: Path, tmp_path: Path) -> None:
    judge = load_judge(stubborn_judge(tmp_path / "judge", file, "abcdef"))
    head: Any = judge.network[-1]
    torch.nn.init.normal_(head.weight, std=30.0)
    images = (torch.rand(70, 3, 1, 1) * 2 - 1).expand(-1, -1, 16, 16)  # each of one colour
    places, said = judgement(judge, images, ["b"] * 70)
    one_by_one = [judgement(judge, images[i : i + 1], ["b"]) for i in range(70)]
    assert places.tolist() == [int(place) for place, _ in one_by_one] and len(set(places.tolist())) > 1
    assert said == [answer for _, (answer,) in one_by_one]


def test_configs_take_another_size_and_another_path(file: Path) -> None:
    configs = concept_configs(file)
    sized = data_configs(configs, None, 24)
    assert sized["validation"]["params"]["images"]["params"] == {"files": [str(file)], "size": 24}
    assert configs["validation"]["params"]["images"]["params"]["size"] == 16  # the judge's own config is left as it was
    moved = data_configs(configs, str(file.parent), 24)["validation"]["params"]
    assert moved["held_out"] and moved["every"] == 5
    assert moved["images"]["params"] == {"files": str(file.parent), "size": 24}
    with pytest.raises(ValueError, match=r"data sets train, expected validation"):
        data_configs({"train": configs["train"]}, None, 24)


def test_wrong_input_is_one_line(run: Run, file: Path, tmp_path: Path) -> None:
    judge = stubborn_judge(tmp_path / "judge", file, "abcdef")
    assert "train one with main.py --base configs/judge/emoji.yaml -t" in run("--judge", tmp_path / "nothing")
    other = run("--judge", judge, "--data", ROOT / "data" / "emoji")
    assert "expected one of the judge's 6" in other
    table = pq.read_table(file)
    trained = table.filter([concept not in HELD_OUT for concept in table["concept"].to_pylist()])
    pq.write_table(trained, tmp_path / "trained.parquet")
    assert "no picture of the split 'val'" in run("--judge", judge, "--data", tmp_path / "trained.parquet")
    first_stage = ROOT / "models" / "first_stage" / "emoji-vq-f4"
    assert "VQModel, expected a diffusion or autoregressive model" in run("--judge", judge, model=first_stage)
