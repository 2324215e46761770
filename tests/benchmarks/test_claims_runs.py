"""The training runs of the claims, and their measurement, which repeats nothing."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import ROOT, rdm_config, ship

from benchmarks.claims.cases import Case, all_cases, by_class, popular, text
from benchmarks.claims.measure import Bench, choose_prompts, measure_all, read_lines, restricted
from benchmarks.claims.runs import CONFIGS, STEPS, all_runs, command, is_trained, metrics, train
from benchmarks.claims.spaces import SPACES, Setup, accuracy, judged, likenesses, quality, set_up
from ldm.config import read_config
from ldm.util import instantiate_from_config
from rdm.evaluate.metrics import Moments
from rdm.loading import load

RUNS = all_runs()


def parameters(name: str) -> int:
    config = read_config([str(ROOT / file) for file in CONFIGS], RUNS[name].settings())
    with torch.device("meta"):
        network = instantiate_from_config(config["model"]["params"]["unet_config"])
    return sum(parameter.numel() for parameter in network.parameters())


def test_a_plain_model_is_as_large_as_one_with_neighbours_and_a_large_one_half_as_large_again() -> None:
    plain = parameters("plain-0")
    assert parameters("neighbours-0") == parameters("k8-0") == plain
    assert 1.4 < parameters("plain-large-0") / plain < 1.6


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_a_valid_config_that_differs_where_it_says(name: str) -> None:
    run = RUNS[name]
    config = read_config([str(ROOT / file) for file in CONFIGS], run.settings())
    params = config["model"]["params"]
    assert params["seed"] == config["data"]["params"]["seed"] == run.seed == int(name[-1])
    assert params["unet_config"]["params"]["model_channels"] == 32
    steps = {"tokens": 902, "references": 1132, "both": 882}.get(name[:-2], STEPS)
    assert config["lightning"]["trainer"]["max_steps"] == steps
    assert params["scheduler_config"]["params"]["max_decay_steps"] == steps
    assert (
        (params["conditioner"].get("tokens") == "grid")
        is ("tokens" in config["data"]["params"])
        is (name[:-2] in ("tokens", "both"))
    )
    assert (
        ("references" in params) is ("references" in config["data"]["params"]) is (name[:-2] in ("references", "both"))
    )
    assert params["conditioner"]["k"] == config["data"]["params"]["k"] == {"k1-0": 1, "k2-0": 2, "k8-0": 8}.get(name, 4)
    assert params.get("use_neighbours", True) is not name.startswith("plain")
    assert params["p_uncond"] == {"uncond0-0": 0.0, "uncond3-0": 0.3}.get(name, 0.1)
    assert params["min_snr_gamma"] == (None if name == "flat-0" else 5.0)
    assert params.get("parameterization", "eps") == ("v" if name == "v-0" else "eps")


def test_tokens_and_references_change_nothing_but_the_context() -> None:
    """A network that also sees references has a tenth more parameters; that of grids is the same."""
    plain = parameters("neighbours-0")
    assert parameters("tokens-0") == plain
    assert 1 < parameters("references-0") / plain == parameters("both-0") / plain < 1.1


def test_a_run_goes_on_from_its_last_checkpoint_with_its_own_seed(tmp_path: Path) -> None:
    begun = command(RUNS["plain-2"], tmp_path, ["lightning.trainer.max_steps=5"])
    assert begun[begun.index("-s") + 1] == "25" and begun[-1] == "lightning.trainer.max_steps=5"
    assert begun[begun.index("-p") + 1] == str(tmp_path / "runs" / "plain-2") and "--resume" not in begun
    (tmp_path / "runs/plain-2/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/plain-2/checkpoints/last.ckpt").touch()
    resumed = command(RUNS["plain-2"], tmp_path)
    assert "-p" not in resumed and resumed[resumed.index("--resume") + 1] == str(tmp_path / "runs" / "plain-2")


def test_a_model_brought_from_elsewhere_counts_as_trained(tmp_path: Path) -> None:
    assert not is_trained("v-0", tmp_path)
    (tmp_path / "models/v-0").mkdir(parents=True)
    (tmp_path / "models/v-0/model.safetensors").touch()
    assert is_trained("v-0", tmp_path) and train(RUNS["v-0"], tmp_path) == "" and not (tmp_path / "runs").exists()


def test_losses_are_the_last_and_seconds_the_median_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    head = "step,time/step_seconds,val/loss,val/loss_ema"
    (tmp_path / "metrics.csv").write_text(f"{head}\n10,0.5,,\n20,0.3,,\n20,,0.9,0.8\n30,9,,\n")
    (tmp_path / "metrics-0.csv").write_text(f"{head}\n21,0.4,,\n40,,0.7,\n")
    os.utime(tmp_path / "metrics.csv", (1, 1))
    assert metrics(tmp_path) == {"val/loss_ema": 0.8, "val/loss": 0.7, "step_seconds": 0.4}
    assert set(metrics(tmp_path / "none").values()) == {None}


def test_a_run_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    message = train(RUNS["v-0"], tmp_path, ["model.params.no_such_thing=1"])
    assert "exit code 2" in message and "no_such_thing" in (tmp_path / "runs/v-0.log").read_text()


def test_every_case_is_of_a_run_and_has_a_name_of_its_own() -> None:
    cases = [case for own in all_cases().values() for case in own]
    assert {case.run for case in cases} == set(RUNS)
    assert len({case[:3] for case in cases}) == len(cases)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Setup]:
    """A folder with a tiny model as the run neighbours-0, and the setup of all cases."""
    folder = tmp_path_factory.mktemp("claims")
    ship(folder / "models" / "neighbours-0", rdm_config(folder))
    return folder, set_up(load(str(folder / "models/neighbours-0")), folder / "cache", 1, most=6)


CASES = [
    Case("retrieval", "usual", "neighbours-0", popular(k=2)),
    Case("k_test", "k 2", "neighbours-0", popular(k=2)),
    Case("concepts", "held", "neighbours-0", text("held", k=2)),
    Case("concepts", "train rows", "neighbours-0", text("held", k=2, rows="train")),
    Case("synthesis", "class", "neighbours-0", {**by_class("both", k=2)}),
    Case("database_size", "half", "neighbours-0", popular(k=2, rows=0.5)),
    Case("retrieval", "plain", "plain-0", popular(k=2)),
]


def test_cases_are_measured_once_and_a_broken_one_stops_no_other(system: tuple[Path, Setup], tmp_path: Path) -> None:
    folder, setup = tmp_path / "bench", system[1]
    shutil.copytree(system[0] / "models", folder / "models")
    bench = Bench(folder, setup, 8, 4)
    wrong = Case("k_test", "wrong", "neighbours-0", popular(k=10_000))
    broken, missing = measure_all(bench, [wrong, *CASES])
    assert list(broken) == ["k_test, wrong, neighbours-0"] and missing == ["plain-0"]
    lines = read_lines(folder)
    assert [line["case"] for line in lines] == [case.name for case in CASES[:-1]]
    found = {line["case"]: line["figures"] for line in lines}
    assert found["usual"] == found["k 2"] and found["half"]["rows"] == 20
    assert {"pixels_fd_train", "clip_fd_held", "clip_recall", "pixels_coverage"} <= set(found["usual"])
    assert 0 <= found["usual"]["clip_copies"] <= 1 and "judge_top1" not in found["usual"]
    assert found["held"]["judge_top1"] <= found["held"]["judge_top5"]
    assert "clip_score" in found["held"] and "clip_score" not in found["class"]
    assert found["class"]["class_accuracy"] <= 1

    for name in ("retrieval-usual", "k_test-k_2"):
        assert (folder / "pictures" / f"{name}-neighbours-0.png").is_file()

    text_before = (folder / "figures.jsonl").read_text()
    (folder / "figures.jsonl").write_text(text_before + text_before[:40])  # an incomplete line
    assert measure_all(Bench(folder, setup, 8, 4), CASES) == ({}, ["plain-0"])
    assert (folder / "figures.jsonl").read_text() == text_before + text_before[:40]
    measure_all(Bench(folder, setup, 9, 4), CASES[:1])
    assert json.loads((folder / "figures.jsonl").read_text().splitlines()[-1])["figures"]["images"] == 9


def test_rows_of_smaller_shares_are_among_those_of_larger_ones(system: tuple[Path, Setup]) -> None:
    loaded = load(str(system[0] / "models/neighbours-0"))
    few, more = (set(restricted(loaded, share).retriever.rows.tolist()) for share in (0.1, 0.5))
    assert len(few) == 4 and len(more) == 20 and few < more and restricted(loaded, 1.0) is loaded


def test_prompts_are_evenly_spread_and_of_both_parts(system: tuple[Path, Setup]) -> None:
    setup = system[1]
    assert len(setup.names["train"]) == len(setup.names["held"]) == 6
    chosen = choose_prompts(setup, text("all"), 100)
    assert chosen[::2] == setup.names["train"] and chosen[1::2] == setup.names["held"]
    assert len(choose_prompts(setup, text("held"), 4)) == 4 and choose_prompts(setup, popular(), 4) == []


def test_balanced_accuracy_counts_classes_alike() -> None:
    found = accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]))
    assert found == {"class_accuracy": 0.75, "class_balanced": 0.5}


def test_copies_are_counted_beyond_what_held_out_pictures_reach(system: tuple[Path, Setup]) -> None:
    train = torch.eye(8)
    near = torch.stack([3 * train[0] + 4 * train[1], 2 * train[2]]).repeat(4, 1)
    assert torch.allclose(likenesses(near, train), torch.tensor([0.8, 1.0]).repeat(4))
    features = {part: dict.fromkeys(SPACES, train) for part in ("train", "held")}
    moments = {part: dict.fromkeys(SPACES, Moments.of(train)) for part in ("train", "held")}
    setup = replace(system[1], features=features, moments=moments, likeness={"clip": 0.9, "pixels": 0.7})
    figures = quality(setup, dict.fromkeys(SPACES, near))
    assert (figures["clip_copies"], figures["pixels_copies"]) == (0.5, 1.0)


def test_the_judge_counts_real_pictures_of_names_that_it_knows(system: tuple[Path, Setup]) -> None:
    setup = system[1]
    real = setup.real["train"]
    names = [setup.names["train"][place] for place in real["places"].tolist()]
    found = judged(setup, real["pictures"], names)
    assert found["judge_top5"] > 0.5  # it was trained on these pictures
    assert judged(setup, real["pictures"], ["no such concept"] * len(names)) == {}
