"""The command line of main.py, and that a run which was stopped goes on as if it had not been."""

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import small_files
from pictures import contents, write_pictures
from small_models import IDENTITY, unet

import main
from ldm.callbacks import ImageLogger
from ldm.checkpoint import read_weights
from ldm.config import read_run_config, write_config
from ldm.data import DataModule
from ldm.util import get_obj_from_str


def test_settings_may_stand_anywhere() -> None:
    for words in (
        ["-b", "a.yaml", "b.yaml", "-t", "model.k=8", "name=x=y"],
        ["model.k=8", "-t", "--base", "a.yaml", "b.yaml", "name=x=y"],
        ["-t", "model.k=8", "name=x=y", "-b", "a.yaml", "b.yaml"],
        ["-t", "true", "-b", "a.yaml", "model.k=8", "b.yaml", "name=x=y"],
    ):
        options = main.parse(words)
        assert (options.base, options.train) == (["a.yaml", "b.yaml"], True), words
        assert options.overrides == ["model.k=8", "name=x=y"]
    assert main.parse(["-t", "false"]).train is False and main.parse([]).train is False
    assert main.parse(["--scale_lr", "false", "-s", "3"]).seed == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resme", "x"], "unknown argument '--resme'; did you mean '--resume'?"),
        (["-t", "-b", "a.yaml", "--no_test"], "unknown argument '--no_test'; did you mean '--no-test'?"),
        (["--train", "maybe"], "expected yes or no, got 'maybe'"),
        (["--gpus", "abc"], "expected numbers such as '0,' or '0,1', got 'abc'"),
        (["-s", "x"], "expected a whole number from 0 to 4294967295, got 'x'"),
    ],
)
def test_wrong_words_end_with_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.parse(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_targets_of_compvis_are_reachable() -> None:
    assert issubclass(get_obj_from_str("main.ImageLogger"), ImageLogger)
    assert issubclass(get_obj_from_str("main.DataModuleFromConfig"), DataModule)
    with pytest.raises(ValueError, match="target 'main.Nothing'"):
        get_obj_from_str("main.Nothing")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model": {}, "data": {}, "lightnig": {}},
            "config: unknown key 'lightnig'; did you mean 'lightning'?",
        ),
        (
            {"model": {}, "data": {}, "lightning": {"trainr": {}}},
            "lightning: unknown key 'trainr'; did you mean 'trainer'?",
        ),
        ({"model": {}}, "section 'data' is missing; give it with --base"),
        ({"model": {}, "data": {}, "lightning": {"trainer": "x"}}, "lightning.trainer: got 'x', expected a mapping"),
    ],
)
def test_wrong_sections_are_named(config: dict, message: str, tmp_path: Path) -> None:
    write_config(tmp_path / "a.yaml", config)
    with pytest.raises(ValueError) as caught:
        read_run_config([tmp_path / "a.yaml"])
    assert message in str(caught.value)


def test_nothing_to_do_or_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a config with --base, or a run to go on from with --resume"):
        main.train(main.parse(["-t"]))
    with pytest.raises(FileNotFoundError, match="no config at .*none.yaml"):
        main.train(main.parse(["-b", str(tmp_path / "none.yaml")]))
    with pytest.raises(FileNotFoundError, match="expected a checkpoint or a folder with checkpoints/last.ckpt"):
        main.train(main.parse(["-t", "-r", str(tmp_path)]))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoints").mkdir()
    (file := tmp_path / "checkpoints" / "m.safetensors").touch()
    with pytest.raises(ValueError, match="m.safetensors, expected a run folder or a .ckpt file in its checkpoints/"):
        main.train(main.parse(["-t", "-r", str(file)]))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    pictures = write_pictures(folder / "pictures", 10)
    network = unet()
    network["params"]["dropout"] = 0.2
    content: dict[str, Any] = {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "base_learning_rate": 1e-3,
            "params": {
                "unet_config": network,
                "first_stage_config": IDENTITY,
                "timesteps": 20,
                "scale_by_std": True,
                "scheduler_config": {
                    "target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
                    "params": {
                        "warm_up_steps": 2,
                        "lr_start": 0.1,
                        "lr_max": 1,
                        "lr_min": 0,
                        "max_decay_steps": 9,
                    },
                },
            },
        },
        "data": {
            "target": "main.DataModuleFromConfig",
            "params": {"batch_size": 2, "train": pictures, "validation": pictures},
        },
        "lightning": {
            "trainer": {
                "max_steps": 7,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "log_every_n_steps": 1,
            },
            "callbacks": {"images": {"target": "main.ImageLogger", "params": {"every_n_steps": 4, "max_images": 2}}},
            "checkpoint": {"every_n_train_steps": 3},
        },
    }
    write_config(folder / "tiny.yaml", content)
    return str(folder / "tiny.yaml")


def metrics(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every training step that a run has logged."""
    rows = [row for file in run.glob("metrics*.csv") for row in csv.DictReader(file.open())]
    return sorted((int(row["step"]), float(row["train/loss"])) for row in rows if row.get("train/loss"))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(config: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main.train(main.parse(["-b", config, "-t", "-p", str(whole)]))
    main.train(main.parse(["-b", config, "-t", "lightning.trainer.max_steps=4", "-p", str(parts)]))
    assert read_weights(parts / "checkpoints" / "last.ckpt")["model_ema.num_updates"] == 4
    parts = parts.rename(tmp_path / "moved")
    main.train(main.parse(["-t", "--resume", str(parts), "lightning.trainer.max_steps=7"]))
    expected, got = (read_weights(run / "checkpoints" / "last.ckpt") for run in (whole, parts))
    assert expected["model_ema.num_updates"] == 7  # the last step is kept although no multiple of three
    assert sorted(path.name for path in (parts / "checkpoints").iterdir()) == [
        "healthy.ckpt",
        "healthy.json",
        "last.ckpt",
    ]
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
    assert metrics(parts) == metrics(whole) and [step for step, _ in metrics(whole)] == list(range(7))
    assert sorted(path.name for path in (whole / "images").iterdir()) == ["0000004.png", "0000007.png"]
    assert read_run_config([whole / "config.yaml"]).trainer["max_steps"] == 7


def test_a_killed_run_goes_on_from_its_last_checkpoint(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["lightning.checkpoint.save_top_k=1", "lightning.trainer.max_steps=5"]
    main.train(main.parse(["-b", config, "-t", "-p", str(run), *settings]))
    expected = {name: value.clone() for name, value in read_weights(run / "checkpoints" / "last.ckpt").items()}
    shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")  # written at step 3
    assert read_weights(run / "checkpoints" / "last.ckpt")["model_ema.num_updates"] == 3
    main.train(main.parse(["-t", "--resume", str(run)]))
    got = read_weights(run / "checkpoints" / "last.ckpt")
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []


def test_without_t_a_run_is_validated_and_left_as_it_is(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = read_run_config([config]).data["params"]["validation"]
    test_set = f"data.params.test={{target: {pictures['target']}, params: {pictures['params']}}}"
    steps = "lightning.trainer.max_steps=2"
    main.train(main.parse(["-b", config, "-t", "--no-test", "-p", str(tmp_path / "run"), steps]))
    before = contents(tmp_path)
    capsys.readouterr()
    main.train(main.parse(["-r", str(tmp_path / "run"), test_set]))
    losses = re.findall(r"val/loss \D*([\d.]+)", capsys.readouterr().out)
    main.train(main.parse(["-b", config, "model.params.scale_by_std=false"]))  # new weights: another loss
    losses += re.findall(r"val/loss \D*([\d.]+)", capsys.readouterr().out)
    assert len(losses) == 3 and losses[0] == losses[1] != losses[2]  # the test set is the validation set here
    assert contents(tmp_path) == before


def test_an_evil_checkpoint_is_not_resumed(config: str, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return Path.mkdir, (tmp_path / "made",)

    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "callbacks": Evil()}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="was refused: it asks for pathlib.Path.mkdir|was refused: .* could run code"):
        main.train(main.parse(["-b", config, "-t", "--resume", str(tmp_path)]))
    assert not (tmp_path / "made").exists()


def test_the_rate_is_absolute_unless_scaling_is_asked_for(config: str) -> None:
    import pytorch_lightning as pl

    settings = read_run_config([config])
    trainer = pl.Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=3, enable_checkpointing=False)
    model = main.instantiate_from_config(settings.model)
    main.set_learning_rate(model, settings, False, trainer)
    assert model.learning_rate == 1e-3
    main.set_learning_rate(model, settings, True, trainer)
    assert model.learning_rate == pytest.approx(1e-3 * 1 * 2 * 3)


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.time, "strftime", lambda _: "now")
    options = main.parse(["-t", "-l", str(tmp_path), "-f", "_b"])
    made = [main.new_run(options, "a") for _ in range(3)]
    assert [run.name for run in made] == ["now_a_b", "now_a_b-2", "now_a_b-3"] and all(run.is_dir() for run in made)


def test_a_run_that_does_not_begin_leaves_nothing(config: str, tmp_path: Path) -> None:
    for words in (["data.params.train.params.root=none"], ["lightning.trainer.max_steps=abc"], ["--gpus", "99,"]):
        with pytest.raises(ValueError if "root" not in words[0] else FileNotFoundError):
            main.train(main.parse(["-b", config, "-t", "-l", str(tmp_path / "logs"), *words]))
        assert contents(tmp_path) == {}


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / ".last.ckpt.0123abcd.1.tmp").write_bytes(b"half")
    options = main.parse(["-t", "-p", str(run)])
    assert main.new_run(options, "a") == run
    (run / "checkpoints" / "best.ckpt").write_bytes(b"whole")
    with pytest.raises(ValueError, match="already holds a run"):
        main.new_run(options, "a")


def test_a_run_is_neither_written_over_nor_spoilt_by_a_wrong_config(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main.train(main.parse(["-b", config, "-t", "--no-test", "-p", str(run), "lightning.trainer.max_steps=1"]))
    before = (run / "config.yaml").read_text()
    with pytest.raises(ValueError, match="already holds a run; go on with --resume"):
        main.train(main.parse(["-b", config, "-t", "-p", str(run)]))
    with pytest.raises(ValueError, match="last.ckpt does not fit LatentDiffusion: .* of another shape"):
        main.train(main.parse(["-t", "-r", str(run), "model.params.unet_config.params.model_channels=64"]))
    with pytest.raises(ValueError, match="expected at least batch_size=1000"):
        main.train(main.parse(["-t", "-r", str(run), "data.params.batch_size=1000"]))
    assert (run / "config.yaml").read_text() == before
    with pytest.raises(ValueError, match="expected a run folder or a .ckpt file in its checkpoints/"):
        main.train(main.parse(["-t", "-r", str(run / "config.yaml")]))


def test_what_a_killed_run_was_writing_goes_also_if_nothing_is_left_to_do(config: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main.train(main.parse(["-b", config, "-t", "--no-test", "-p", str(run), "lightning.trainer.max_steps=1"]))
    before = contents(run / "checkpoints")
    dies = f"import os; from ldm.files import atomic_path as a\nwith a('{run}/checkpoints/last.ckpt') as file:\n"
    dies += "    file.touch(); os.kill(os.getpid(), 9)"
    root = Path(main.__file__).parent
    subprocess.run([sys.executable, "-c", dies], cwd=root, check=False)
    assert len(contents(run / "checkpoints")) == len(before) + 1
    subprocess.run([sys.executable, "main.py", "-t", "--no-test", "-r", run], cwd=root, check=True)
    assert contents(run / "checkpoints").keys() == before.keys()


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["lightning.trainer.precision=16-true"], "precision: got 16-true.*bf16-mixed"),
        (["lightning.trainer.precision=64"], "precision: got 64"),
        (["lightning.trainer.overfit_batches=2"], "overfit_batches: got 2.*limit_train_batches"),
        (["lightning.trainer.profiler=fast"], "lightning.trainer: .*profiler"),
        (
            ["lightning.callbacks.stop.target=pytorch_lightning.callbacks.EarlyStopping"]
            + ["lightning.callbacks.stop.params.monitor=val/later"],
            "metric `val/later` which is not available.*strict: false",
        ),
    ],
)
def test_options_of_lightning_that_cannot_work_end_in_one_line(
    config: str, tmp_path: Path, words: list[str], fact: str
) -> None:
    limits = ["lightning.trainer.max_epochs=1", "lightning.trainer.limit_train_batches=1"]
    with pytest.raises(ValueError, match=fact) as refused:
        main.train(main.parse(["-b", config, "-t", "--no-test", "-p", str(tmp_path / "run"), *limits, *words]))
    assert "\n" not in str(refused.value)


def test_a_network_of_too_many_outputs_is_named(config: str, tmp_path: Path) -> None:
    words = ["-b", config, "-t", "-p", str(tmp_path / "run"), "model.params.unet_config.params.out_channels=5"]
    with pytest.raises(ValueError, match="output has shape .* correct out_channels in unet_config"):
        main.train(main.parse(words))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_says_so_and_how_to_go_on(config: str, tmp_path: Path, number: int) -> None:
    """No checkpoint is due, and a signal reaches all processes, as those of a terminal or of a cluster do."""
    run, root = tmp_path / "run", Path(main.__file__).parent
    words = ["-b", config, "-t", "--no-test", "-p", str(run), "lightning.trainer.max_steps=1000000"]
    words += ["lightning.checkpoint.every_n_train_steps=1000000", "data.params.num_workers=1"]
    with subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "main.py", *words],
        cwd=root,
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:

        def wait_for(file: Path) -> None:
            give_up = time.monotonic() + 120
            while not file.is_file() and time.monotonic() < give_up and process.poll() is None:
                time.sleep(0.05)

        wait_for(run / "metrics.csv")  # some steps are done
        os.killpg(process.pid, signal.SIGUSR1)
        wait_for(run / "checkpoints" / "last.ckpt")
        with pytest.raises(ValueError, match=f"process {process.pid} on .* is training in {run}"):
            main.train(main.parse(["-t", "--resume", str(run)]))
        os.killpg(process.pid, number)
        try:
            errors = process.communicate(timeout=60)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, errors
    said = re.search(rf"^stopped at step (\d+); go on from its last checkpoint with -t --resume {run}$", errors, re.M)
    assert said and "Traceback" not in errors, errors
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    assert last["global_step"] == int(said[1]) > 0
    assert max(step for step, _ in metrics(run)) == int(said[1]) - 1  # the last step is logged, too


def test_a_full_disk_leaves_the_last_checkpoint_and_names_the_run(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    main.train(main.parse(["-b", config, "-t", "--no-test", "-p", str(run), "lightning.trainer.max_steps=3"]))
    last = run / "checkpoints" / "last.ckpt"
    before, words = last.read_bytes(), ["--resume", str(run), "lightning.trainer.max_steps=5"]
    monkeypatch.setattr(sys, "argv", ["main.py", "-t", "--no-test", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught, small_files(len(before) - 1000):
        main.main()
    [message] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert caught.value.code == 2 and f"{last}: file too large" in message and f"--resume {run}" in message
    assert last.read_bytes() == before and not list(last.parent.glob(".*"))
    main.train(main.parse(["-t", "--no-test", *words]))
    assert torch.load(last, weights_only=False)["global_step"] == 5
