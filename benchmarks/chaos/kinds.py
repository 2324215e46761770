"""The kinds of work that are killed: for each, its command, the command that goes on, and what it begins with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Command = list[str]


@dataclass(frozen=True)
class Places:
    """The folders of a benchmark.

    Attributes:
        world: what is only read.
        work: what the work reads and writes; its files have the same paths in all trials.
    """

    world: Path
    work: Path


@dataclass(frozen=True)
class Kind:
    """A kind of work.

    Attributes:
        name: of the kind.
        command: returns the command, given the folders.
        after: the kind at whose end this one begins; None for nothing.
        first: returns a command that is run before the work and is not killed; None for none.
        again: returns the command that goes on after a kill; None for the same one.
    """

    name: str
    command: Callable[[Places], Command]
    after: str | None = None
    first: Callable[[Places], Command] | None = None
    again: Callable[[Places], Command] | None = None


def database(*words: str) -> Command:
    """Returns the command of ``scripts/build_database.py``."""
    return [sys.executable, "scripts/build_database.py", *words]


def train(config: str) -> Callable[[Places], Command]:
    """Returns the command that trains by a config of the world."""
    return lambda at: [sys.executable, "main.py", "-b", f"{at.world}/{config}.yaml", "-t", "-p", f"{at.work}/run"]


def go_on(config: str) -> Callable[[Places], Command]:
    """Returns the command that goes on with a training: from its last checkpoint, or without one from the beginning."""

    def command(at: Places) -> Command:
        if (at.work / "run/checkpoints/last.ckpt").is_file():
            return [sys.executable, "main.py", "-t", "--resume", f"{at.work}/run"]
        return train(config)(at)

    return command


def add(at: Places) -> Command:
    """Returns the command that adds two pictures."""
    known = ("--licence", "CC0-1.0", "--attribution", "A. Uthor", "--embedder", f"{at.world}/clip")
    return database("add", f"{at.work}/db", *map(str, sorted(at.world.glob("new/*/*.png"))), *known)


def sample(at: Places) -> Command:
    """Returns the command that samples eight images, two at a time."""
    drawn = ("--n_samples", "8", "--batch_size", "2", "--steps", "4")
    script = [sys.executable, "scripts/txt2img.py", "--ckpt", f"{at.work}/model"]
    return [*script, "--prompt", "a picture", *drawn, "--outdir", f"{at.work}/images"]


EVERY = (
    Kind("first stage", train("first_stage"), again=go_on("first_stage")),
    Kind("RDM", train("rdm"), after="tables", again=go_on("rdm")),
    Kind("database", lambda at: database("--config", f"{at.world}/database.yaml")),
    Kind("append", lambda at: database("append", "--config", f"{at.world}/more.yaml"), after="database"),
    Kind("add", add, after="database"),
    Kind("remove", lambda at: database("remove", f"{at.work}/db", "--where", "class_id=class1"), after="database"),
    Kind("compact", lambda at: database("compact", f"{at.work}/db"), after="remove"),
    Kind(
        "merge",
        lambda at: database("merge", f"{at.work}/db", f"{at.work}/second", "--output", f"{at.work}/merged"),
        after="remove",
        first=lambda at: database("--config", f"{at.world}/second.yaml"),
    ),
    Kind(
        "index",
        lambda at: database("--config", f"{at.world}/database.yaml", "--index", "HNSW4,Flat"),
        after="database",
    ),
    Kind(
        "tables",
        lambda at: [sys.executable, "scripts/search_neighbors.py", "--config", f"{at.world}/rdm.yaml"],
        after="database",
    ),
    Kind("references", train("references"), again=go_on("references")),
    Kind(
        "export",
        lambda at: [sys.executable, "scripts/export_checkpoint.py", f"{at.work}/run", "--output", f"{at.work}/model"],
        after="RDM",
    ),
    Kind("sampling", sample, after="export"),
    Kind(
        "page", lambda at: [sys.executable, "-m", "benchmarks.chaos.page", str(at.world), str(at.work)], after="export"
    ),
)
KINDS = {kind.name: kind for kind in EVERY}
