"""The questions asked to models of photographs: the judge, the cases, and the whole with a tiny model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from toy import plain_config, references_config, ship

from benchmarks.photographs.judge import Judge
from benchmarks.photographs.questions import SEEDS, Bench, cases, main, measure_all

CLASSES = {"clothing": {"hat": (200, 40, 40), "shirt": (40, 40, 200)}, "grocery": {"kiwi": (40, 160, 40)}}
N = 34  # images of a case: a picture shows 32


def write_photographs(folder: Path, size: int = 16) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for stem, classes in CLASSES.items():
        rows = []
        for name, colour in classes.items():
            for number in range(24):
                pixels = np.clip(rng.normal(colour, 30, (size, size, 3)), 0, 255).astype(np.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, format="png")
                image = {"bytes": data.getvalue(), "path": None}
                rows.append({"image": image, "name": name, "split": "val" if number % 3 == 0 else "train"})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{stem}.parquet")
    return folder


def test_the_judge_learns_classes_of_different_size_and_says_how_often_it_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ["pear"] * 60 + ["kiwi"] * 10 + ["hat"] * 10
    centres = {"pear": 0.0, "kiwi": 2.0, "hat": -2.0}
    features = torch.tensor([centres[name] for name in names])[:, None] + torch.randn(80, 6, generator=generator) / 2
    judge = Judge.trained(features, names)
    assert judge.names == ["hat", "kiwi", "pear"]
    accuracy = judge.accuracy(features, names)
    assert accuracy["top1"] > 0.95 and accuracy["top5"] == 1.0
    assert judge.accuracy(features, ["hat"] * 80)["top1"] == pytest.approx(10 / 80, abs=0.03)
    shares = judge.kinds(features, {"hat": "clothes", "kiwi": "fruit", "pear": "fruit"})
    assert list(shares) == ["clothes", "fruit"] and shares["clothes"] == pytest.approx(1 / 8, abs=0.03)
    with pytest.raises(ValueError, match=r"got gloves, expected classes of the training pictures"):
        judge.accuracy(features[:1], ["gloves"])
    with pytest.raises(ValueError, match="got 1 class, expected at least 2"):
        Judge.trained(features[:3], ["hat"] * 3)


def test_a_case_differs_from_the_usual_one_in_one_thing() -> None:
    with_references, without = (list(cases(each, ("fruit",), ("plain",))) for each in (True, False))
    assert {case.question for case in with_references} - {case.question for case in without} == {"references"}
    for case in with_references:
        changed = {*case.options, *case.settings, case.database or case.prompts} - {"seed", ""}
        assert len(changed) == (0 if case.question in ("usual", "models") else 1), case
    assert [case.options["seed"] for case in with_references if case.model == "plain"] == list(SEEDS)
    assert len({(case.question, case.name) for case in with_references}) == len(with_references)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with references, one without retrieval, and photographs; the model is not trained on hats."""
    folder = tmp_path_factory.mktemp("photographs")
    photographs = write_photographs(folder / "photographs")
    config = references_config(folder)
    source = {"target": "ldm.data.ParquetImages", "params": {"files": str(photographs), "size": 16, "split": "train"}}
    seen = {**source, "params": {**source["params"], "without": {"name": "hat"}}}
    data = config["data"]["params"]
    data |= {"train": seen, "validation": seen, "database": {"path": str(folder / "database"), "source": source}}
    (folder / "plain").mkdir()
    trained = {
        "model": str(ship(folder / "model", config)),
        "plain": str(ship(folder / "m0", plain_config(folder / "plain"))),
    }
    return {"folder": folder, "models": trained, "pictures": str(photographs), "clip": str(folder / "clip")}


def test_all_cases_of_a_tiny_model_are_measured_and_drawn(models: dict[str, Any], tmp_path: Path) -> None:
    options = {"batch_size": 34, "steps": 2, "sampler": "ddim"}

    given = (models["models"], models["pictures"], str(Path(models["pictures"]) / "grocery.parquet"))

    def run(folder: Path) -> list[dict[str, Any]]:
        return measure_all(Bench(folder, *given, N, options, models["clip"]))

    rows = run(tmp_path)
    by_name = {(row["question"], row["case"]): row for row in rows}
    assert len(by_name) == 1 + len(list(cases(True, ("clothing", "grocery", "drawings"), ("plain",))))
    real = by_name["real pictures", "training photographs"]
    assert real["top1"] > 0.9 and real["called"] == {
        "clothing": pytest.approx(2 / 3, abs=0.1),
        "grocery": pytest.approx(1 / 3, abs=0.1),
    }
    assert real["frechet_distance"] < min(row["frechet_distance"] for row in rows[1:])
    assert all("top1" in by_name["classes", group] for group in ("trained", "held out"))
    held = json.loads((tmp_path / "samples" / "classes-held-out" / "samples.json").read_text())
    assert held["n"] == N and held["asked"]["prompts"] == 1  # hats
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(rows) - 1
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["rows"]) == len(rows) and report["protocol"]["n"] == N
    some = measure_all(Bench(tmp_path / "some", *given, 9, options, models["clip"]), ["popular rows"])
    assert [row["case"] for row in some] == ["training photographs", "top-m 0.01", "top-m 0.1"]
    with pytest.raises(ValueError, match="got n=7 images of each case, expected at least 8"):
        Bench(tmp_path, *given, 7, options)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "samples").rglob("0*.png")}
    assert run(tmp_path) == rows
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "samples").rglob("0*.png")}


def test_a_wrong_argument_is_one_line(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["questions", "--ckpt", models["models"]["model"], "--also", "plain"])
    with pytest.raises(SystemExit):
        main()
    assert "got 'plain', expected NAME=PATH" in capsys.readouterr().err
