"""Trains the models that are compared, each by ``main.py`` in a process of its own."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ldm.checkpoint import read_weights
from ldm.config import read_config
from ldm.curves import history
from ldm.files import read_json, write_json
from ldm.run import export_run
from ldm.util import instantiate_from_config

LOG = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("configs/rdm/emoji-embeddings.yaml", "configs/rdm/emoji-small.yaml")
SEEDS = (0, 1, 2)
STEPS = 1200
FIRST_SEED = 23  # default seed of main.py
PLAIN = ("model.params.use_neighbours=false",)
# Group norms need multiples of 32 channels, so no wider network has exactly 1.5 times the parameters.
LARGE = ("model.params.unet_config.params.channel_mult=[1,2,4]",)
TOKENS = (
    "model.params.conditioner.tokens=grid",
    "model.params.conditioner.grid=4",
    "model.params.conditioner.token_width=384",
    "data.params.tokens.grid=4",
)
REFERENCES = (
    "model.params.references={p_drop: 0.1, p_single: 0.2, p_noise: 0.5}",
    "model.params.unet_config.target=rdm.modules.diffusionmodules.references.ReferenceUNetModel",
    "model.params.unet_config.params.reference_width=16",
    "data.params.references.first_stage=${model.params.first_stage_config}",
    "data.params.references.path=data/databases/emoji/references-32",
)
# What the network sees of the neighbours beside their embeddings, and how many times longer a step then takes: medians
# of 13 steps of 64 that took turns in one process of one thread. Such a run has fewer steps, so that it is not longer.
CONTEXTS = {"tokens": (TOKENS, 1.33), "references": (REFERENCES, 1.06), "both": (TOKENS + REFERENCES, 1.36)}


class Run(NamedTuple):
    """A model to train.

    Attributes:
        name: name of its folders.
        seed: seed of weights, noise and order of the data; the default is 0.
        overrides: settings that differ from the configs.
    """

    name: str
    seed: int = 0
    overrides: tuple[str, ...] = ()

    def settings(self) -> list[str]:
        """Returns the config settings for the command line."""
        return [f"model.params.seed={self.seed}", f"data.params.seed={self.seed}", *self.overrides]


def of_k(k: int) -> tuple[str, ...]:
    """Returns the settings of a model with k neighbours."""
    return f"model.params.conditioner.k={k}", f"data.params.k={k}"


def of_steps(steps: int) -> tuple[str, ...]:
    """Returns the settings of a run of another length."""
    return f"lightning.trainer.max_steps={steps}", f"model.params.scheduler_config.params.max_decay_steps={steps}"


def all_runs() -> dict[str, Run]:
    """Returns every run by its name."""
    kinds = {"neighbours": (), "plain": PLAIN, "plain-large": (*PLAIN, *LARGE)}
    runs = [Run(f"{kind}-{seed}", seed, settings) for kind, settings in kinds.items() for seed in SEEDS]
    runs += [Run(f"k{k}-0", 0, of_k(k)) for k in (1, 2, 8)]
    runs += [Run(f"uncond{tenths}-0", 0, (f"model.params.p_uncond=0.{tenths}",)) for tenths in (0, 3)]
    runs += [Run("v-0", 0, ("model.params.parameterization=v",))]
    runs += [Run("flat-0", 0, ("model.params.min_snr_gamma=null",))]
    for kind, (settings, longer) in CONTEXTS.items():
        shown = (*settings, *of_steps(round(STEPS / longer)))
        runs += [Run(f"{kind}-{seed}", seed, shown) for seed in SEEDS]
    return {run.name: run for run in runs}


def command(run: Run, folder: Path, extra: Sequence[str] = ()) -> list[str]:
    """Returns the command that starts a run, or resumes it from its last checkpoint."""
    place = folder / "runs" / run.name
    begun = (place / "checkpoints" / "last.ckpt").is_file()
    where = ["--resume" if begun else "-p", str(place), "-s", str(FIRST_SEED + run.seed), "--no-test"]
    return ["main.py", "--base", *CONFIGS, "-t", *where, *run.settings(), *extra]


def is_trained(name: str, folder: Path) -> bool:
    """Returns whether the exported model of a run exists; it may come from another machine."""
    return (folder / "models" / name / "model.safetensors").is_file()


def train(run: Run, folder: Path, extra: Sequence[str] = ()) -> str:
    """Trains a run and exports its model, unless that is done; returns an error message, or an empty string."""
    try:
        if is_trained(run.name, folder):
            return ""
        place = folder / "runs" / run.name
        if not (place / "finished.json").is_file():
            if (place / "checkpoints").is_dir() and not (place / "checkpoints" / "last.ckpt").is_file():
                shutil.rmtree(place)  # it was interrupted before its first checkpoint
            words = command(run, folder, extra)
            place.parent.mkdir(parents=True, exist_ok=True)
            LOG.info("training %s", run.name)
            with (folder / "runs" / f"{run.name}.log").open("a") as log:
                path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
                absolute = [str(ROOT / word) if word in ("main.py", *CONFIGS) else word for word in words]
                done = subprocess.run(  # noqa: S603 - our own command line
                    [sys.executable, *absolute],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": path},
                    check=False,
                )
            if done.returncode:
                return f"exit code {done.returncode}, see {folder / 'runs' / run.name}.log"
            mark = {"command": "python " + shlex.join(words), "set": list(extra)}
            write_json(place / "finished.json", mark)
        export(run.name, folder)
    except Exception as error:
        LOG.exception("training %s", run.name)
        return f"{type(error).__name__}: {error}"
    return ""


def export(name: str, folder: Path) -> None:
    """Writes the exported model of a finished run, and its training record."""
    place, model = folder / "runs" / name, folder / "models" / name
    mark = read_json(place / "finished.json", "train it again")
    temporary = folder / "models" / f".{name}"
    weights = export_run(place, temporary)
    config = read_config([place / "config.yaml"])
    write_json(temporary / "training.json", {**mark, **metrics(place), **size(weights), **steps(config)})
    if model.is_dir():
        shutil.rmtree(model)
    temporary.rename(model)


def metrics(place: Path) -> dict[str, float | None]:
    """Returns the last validation losses, of EMA weights and of the last weights, and the median seconds of a step."""
    figures: dict[str, float | None] = dict.fromkeys(("val/loss_ema", "val/loss", "step_seconds"))
    for column in figures:
        try:
            values = history(place, "time/step_seconds" if column == "step_seconds" else column)
        except (ValueError, FileNotFoundError):
            continue
        figures[column] = round(median(values.values()), 4) if column == "step_seconds" else values[max(values)]
    return figures


def size(weights: Path) -> dict[str, int]:
    """Returns the number of parameters of the denoiser."""
    return {"parameters": sum(t.numel() for n, t in read_weights(weights).items() if n.startswith("model."))}


def steps(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns steps and batch size from the config of a run."""
    trainer = config["lightning"]["trainer"]
    return {"steps": trainer["max_steps"], "batch_size": config["data"]["params"]["batch_size"]}


def prepare() -> None:
    """Builds the database and the neighbour tables if they are missing, with pictures in the default model's size.

    A table does not record in which size its pictures were embedded, so a table of 32 x 32 pixels would be mistaken for
    that of the default model.
    """
    instantiate_from_config(read_config(CONFIGS[:1])["data"]).prepare_data()


def train_all(names: Sequence[str], folder: Path, jobs: int, extra: Sequence[str] = ()) -> dict[str, str]:
    """Trains runs, several at the same time, and returns the error messages of those that failed."""
    runs = all_runs()
    if not all(is_trained(name, folder) for name in names):  # before several runs need the database at the same time
        prepare()
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        messages = list(pool.map(lambda name: train(runs[name], folder, extra), names))
    return {name: words for name, words in zip(names, messages, strict=True) if words}
