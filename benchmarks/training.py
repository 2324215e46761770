"""Measures a training step in comparison with an earlier commit of this project and with diffusers.

``python -m benchmarks.training [--stage first] [--precision 32] [--turns 7]`` prints one line of JSON for each way:

============= =======================================================================================================
``ours``      the step of ``main.py``: Lightning, loader, neighbours, AdamW, clipping, moving average, all callbacks
``before``    the same of the commit that ``--commit`` names, from an archive of it
``diffusers`` ``UNet2DConditionModel`` of this size in a plain loop, its data in memory: AdamW, clipping, ``EMAModel``
============= =======================================================================================================

Each way is a process of its own, and they take turns of one step. ``wall`` and ``cpu`` are medians of seconds for a
step, of which ``loader`` is the time for the next batch. ``cpu`` hardly depends on other programs. ``faster`` is the
ratio of its CPU seconds to those of ``ours``: the median over the turns, and the range of its middle half.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import runpy
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
BEFORE = "0335925"  # the last commit before the training step was made faster
CONFIGS = {"diffusion": "configs/rdm/emoji-embeddings.yaml", "first": "configs/first_stage/emoji-vq-f4.yaml"}
PICTURES = 640  # of one style, so that database and latents take seconds
WARM_UP = 2  # steps before the first turn


class Clock:
    """Takes the times of a step, which begins when the parent process says so."""

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self.commands, self.answers = commands, answers
        self._last = self._times()
        self.seconds: dict[str, float] = {}

    @staticmethod
    def _times() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def wait(self) -> bool:
        """Reports the previous step together with the time since its end; returns whether there is another."""
        if self.seconds:
            self.lap("loader")
        self.answers.write(json.dumps(self.seconds) + "\n")
        self.answers.flush()
        self.seconds = {}
        another = bool(self.commands.readline())
        self._last = self._times()
        return another

    def lap(self, name: str) -> None:
        """Adds the time since the last call to a part of the step."""
        now = self._times()
        self.seconds[name] = self.seconds.get(name, 0.0) + now[0] - self._last[0]
        self.seconds["cpu"] = self.seconds.get("cpu", 0.0) + now[1] - self._last[1]
        self._last = now


def train_ours(clock: Clock, config_path: str, folder: str, precision: str, pictures: str) -> None:
    """Trains as ``main.py`` of the current folder does, until the clock stops."""
    import pytorch_lightning as pl

    from ldm.config import read_run_config
    from ldm.util import instantiate_from_config

    settings = {
        **{f"data.params.{part}.params.files": pictures for part in ("train", "validation")},
        "lightning.trainer.precision": precision,
        "lightning.trainer.limit_val_batches": 0,
        "lightning.trainer.enable_progress_bar": "false",
        "lightning.callbacks": "{}",
    }
    if "first_stage" not in config_path:
        settings |= {"data.params.database.path": f"{folder}/database"}
        settings |= {"data.params.database.source.params.files": pictures}
    else:
        settings |= {"model.params.lossconfig.params.disc_start": 0}

    class Turns(pl.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            if getattr(module, "_latents", None) is not None:  # as after the first epoch
                for batch in trainer.train_dataloader:
                    module.training_latents(batch, module.generator(0))

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> Any:
            trainer.should_stop = not clock.wait()
            return -1 if trainer.should_stop else None

        def on_before_backward(self, *_: Any) -> None:
            clock.lap("forward")

        def on_after_backward(self, *_: Any) -> None:
            clock.lap("backward")

        def on_train_batch_end(self, *_: Any) -> None:
            clock.lap("update")

    pl.seed_everything(0)
    if not Path(config_path).is_file():
        config_path = "configs/rdm.yaml"  # the model of embeddings alone in earlier commits
    config = read_run_config([config_path], [f"{name}={value}" for name, value in settings.items()])
    model, data = instantiate_from_config(config.model), instantiate_from_config(config.data)
    program = runpy.run_path("main.py")  # of the source tree that is measured, which is the current folder
    trainer = program["build_trainer"](config, Path(folder) / "run", "", True)
    trainer.callbacks.append(Turns())
    trainer.fit(model, datamodule=data)


def train_diffusers(clock: Clock, config_path: str, folder: str, precision: str, pictures: str) -> None:  # noqa: ARG001
    """Trains diffusers' U-Net of the same shape on random latents and contexts."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    from ldm.config import read_config
    from ldm.convert.unet import unet_to_diffusers

    config = read_config([config_path])
    batch, params = config["data"]["params"]["batch_size"], config["model"]["params"]
    described: Any = unet_to_diffusers(params["unet_config"]["params"])
    unet: Any = UNet2DConditionModel.from_config(described).train()
    schedule: Any = DDPMScheduler()
    ema = EMAModel(unet.parameters(), decay=params["ema_decay"])
    optimizer = torch.optim.AdamW(unet.parameters(), lr=params["learning_rate"], weight_decay=params["weight_decay"])
    size, width = described["sample_size"], described["cross_attention_dim"]
    latents = torch.randn(batch, described["in_channels"], size, size)
    contexts = torch.randn(batch, config["data"]["params"]["k"], width)
    clip = config["lightning"]["trainer"]["gradient_clip_val"]
    while clock.wait():
        noise, t = torch.randn_like(latents), torch.randint(1000, (batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            output = unet(schedule.add_noise(latents, noise, t), t, contexts).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        clock.lap("forward")
        loss.backward()
        clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(unet.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        clock.lap("update")


TRAIN: dict[str, Callable[..., None]] = {"ours": train_ours, "before": train_ours, "diffusers": train_diffusers}


def summarise(turns: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Returns for each way the medians over its turns, and how much faster the first way is."""
    result: dict[str, dict[str, Any]] = {}
    first = next(iter(turns))
    for way, steps in turns.items():
        names = [name for name in steps[0] if name != "cpu"]
        row: dict[str, Any] = {"wall": statistics.median(sum(step[name] for name in names) for step in steps)}
        row |= {name: statistics.median(step[name] for step in steps) for name in ("cpu", *names)}
        ratios = [theirs["cpu"] / ours["cpu"] for theirs, ours in zip(steps, turns[first], strict=True)]
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        row["faster"] = statistics.median(ratios)
        row = {name: round(value, 3) for name, value in row.items()}
        result[way] = row | {"faster_range": [round(quarters[0], 3), round(quarters[2], 3)]}
    return result


@contextmanager
def running(way: str, tree: Path, arguments: list[str], threads: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Starts a way from a source tree, and returns a function that lets it take a step and returns its seconds."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--child", way, *arguments]
    settings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = subprocess.Popen(command, cwd=tree, env=os.environ | settings, **pipes)  # noqa: S603 (ourselves)
    with started as process:
        commands: Any = process.stdin
        answers: Any = process.stdout

        def answer() -> dict[str, float]:
            line = answers.readline()
            if not line:
                raise RuntimeError(f"the process of '{way}' ended; its error is above")
            return json.loads(line)

        def step() -> dict[str, float]:
            commands.write("step\n")
            commands.flush()
            return answer()

        answer()
        yield step
        commands.close()


def write_archive(commit: str, folder: Path) -> Path:
    """Writes the source of a commit, and links the models that its configs name."""
    command = ["git", "-C", str(ROOT), "archive", commit, "ldm", "rdm", "configs", "main.py"]
    done = subprocess.run(command, capture_output=True)  # noqa: S603 (a commit of this project)
    if done.returncode:
        raise ValueError(f"--commit: git has no {commit}, expected a clone with its history; {done.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def write_pictures(path: Path) -> Path:
    """Writes some pictures of the emoji as a Parquet file."""
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(ROOT / "data" / "emoji" / "noto.parquet").slice(0, PICTURES), path)
    return path


def measure(stage: str, precision: str, turns: int, threads: int, commit: str) -> dict[str, dict[str, Any]]:
    """Returns the medians of each way for a stage."""
    ways = ("ours", "before", "diffusers") if stage == "diffusion" else ("ours", "before")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        pictures = write_pictures(folder / "pictures.parquet")
        steps = {}
        for way in ways:
            (folder / way).mkdir()
            tree = write_archive(commit, folder / "source") if way == "before" else ROOT
            arguments = [CONFIGS[stage], str(folder / way), precision, str(pictures)]
            steps[way] = stack.enter_context(running(way, tree, arguments, threads))
        for _ in range(WARM_UP):
            for step in steps.values():
                step()
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, step in steps.items():
                taken[way].append(step())
    return summarise(taken)


def main() -> None:
    """Measures the stage of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--stage", choices=CONFIGS, default="diffusion", help="diffusion model or first stage")
    p.add_argument("--precision", choices=("32", "bf16"), help="by default bf16 where the processor has it")
    p.add_argument("--turns", type=int, default=7, help="number of timed steps of each way")
    p.add_argument("--threads", type=int, default=1, help="number of CPU threads of each way")
    p.add_argument("--commit", default=BEFORE, help="the commit to compare with")
    p.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever the libraries print is no answer
        way, *arguments = args.child
        TRAIN[way](Clock(sys.stdin, answers), *arguments)
        return
    from ldm.modules.layers import HAS_BFLOAT16

    precision = args.precision or ("bf16" if HAS_BFLOAT16 else "32")
    trainer_precision = {"32": "32-true", "bf16": "bf16-mixed"}[precision]
    for way, row in measure(args.stage, trainer_precision, args.turns, args.threads, args.commit).items():
        about = {"stage": args.stage, "way": way, "precision": precision, "threads": args.threads, "turns": args.turns}
        print(json.dumps(about | row), flush=True)


if __name__ == "__main__":
    main()
