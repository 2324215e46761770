"""Measures cases: samples images, computes their figures, and keeps only a few images to show."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims.cases import TOP_M, Case
from benchmarks.claims.runs import is_trained
from benchmarks.claims.spaces import Setup, accuracy, judged, quality, unit_texts
from benchmarks.styles import ranks
from ldm.checkpoint import read_weights, write_weights
from ldm.files import file_hash
from ldm.models.diffusion.samplers import USUAL, USUAL_STEPS
from ldm.pictures import from_uint8, image_grid, save_png, to_uint8
from ldm.util import evenly
from rdm.loading import Loaded, load
from rdm.retrieval.database.find import select_rows
from rdm.retrieval.retriever import Retriever
from rdm.sampling import ways
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import Settings

LOG = logging.getLogger(__name__)
SHOWN = 16
SEED = 0
POOL = 20  # number of rows from which the neighbours of a class are drawn


@dataclass
class Bench:
    """Measures cases and keeps the results in a folder.

    Attributes:
        folder: folder of models and results.
        setup: data and networks that all cases share.
        n: number of images in each case.
        batch: number of images that are sampled together.
        lines: the lines of ``figures.jsonl``.
    """

    folder: Path
    setup: Setup
    n: int
    batch: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    _models: dict[str, Loaded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines = read_lines(self.folder)

    def loaded(self, run: str) -> Loaded:
        """Returns the model of a run; only the last model is kept in memory."""
        if run not in self._models:
            self._models = {run: load(str(self.folder / "models" / run))}
        return self._models[run]

    def measure(self, case: Case) -> None:
        """Measures a case and writes its line, unless there is a line with the same model and settings."""
        sha = file_hash(self.folder / "models" / case.run / "model.safetensors") if case.run else ""
        settings = {**case.settings, "n": self.n, "seed": SEED, "sampler": USUAL, "steps": USUAL_STEPS[USUAL]}
        label = {"question": case.question, "case": case.name, "run": case.run, "sha256": sha, "settings": settings}
        if any(label.items() <= line.items() for line in self.lines):
            return
        same = [line for line in self.lines if line["sha256"] == sha and line["settings"] == settings]
        if same:  # another question has the same case
            self.add({**same[-1], **label})
            kept = self.folder / "shown" / f"{shown_key(sha, settings)}.safetensors"
            if kept.is_file():
                self.show(case, read_weights(kept)["images"])
            return
        start = time.perf_counter()
        figures = self.real(case) if case.settings["ask"] == "real" else self.sampled(case, shown_key(sha, settings))
        seconds = round(time.perf_counter() - start, 2)
        shown = choose_prompts(self.setup, settings, self.n)[:SHOWN]
        self.add({**label, "figures": figures, "prompts": shown, "seconds": seconds, "device": torch_device()})

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line to the file."""
        name = f"--skip-training --questions {line['question']} --n {self.n} --batch {self.batch}"
        line["command"] = f"python -m benchmarks.claims {name} --folder {self.folder}"
        self.lines.append(line)
        path = self.folder / "figures.jsonl"
        cut_off = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        with path.open("a") as file:
            file.write(("\n" if cut_off else "") + json.dumps(line) + "\n")
        LOG.info("%s, %s, %s: %s s", line["question"], line["case"], line["run"], line["seconds"])

    def real(self, case: Case) -> dict[str, float]:
        """Returns the figures of the real pictures in a part of the data, as an upper bound for a model."""
        part = self.setup.real[case.settings["names"]]
        features, predicted = self.setup.features_of(part["pictures"])
        names = self.setup.names[case.settings["names"]]
        texts = unit_texts(load(case.settings["embedder_of"]), names)
        return {
            "images": len(predicted),
            **quality(self.setup, features),
            **ranks(features["clip"], part["places"], texts),
            **accuracy(part["classes"], predicted),
            **judged(self.setup, part["pictures"], [names[place] for place in part["places"].tolist()]),
        }

    def sampled(self, case: Case, key: str) -> dict[str, float]:
        """Samples the images of a case, keeps some of them, and returns the figures."""
        settings, setup = case.settings, self.setup
        loaded = restricted(self.loaded(case.run), settings["rows"])
        start = time.perf_counter()
        prompts = choose_prompts(setup, settings, self.n)
        samples = sample_case(loaded, prompts, settings, self.n, self.batch)
        seconds = time.perf_counter() - start
        pictures = to_uint8(samples.images)
        features, predicted = setup.features_of(pictures)
        nearest = loaded.retriever.index.search(features["clip"].numpy(), 1).rows
        figures = {"images": len(pictures), "sampling_seconds": round(seconds, 3), **quality(setup, features)}
        figures |= {"distinct_rows": len(np.unique(nearest)), "rows": row_count(loaded)}
        if settings["ask"] == "text":
            places = torch.arange(self.n) % len(prompts)
            figures |= ranks(features["clip"], places, unit_texts(loaded, prompts))
            figures |= judged(setup, pictures, [prompts[place] for place in places.tolist()])
        if prompts:
            class_names = [setup.class_by_name.get(name, name) for name in prompts]
            labels = torch.tensor([setup.classes.index(owner) for owner in class_names])
            figures |= accuracy(labels[torch.arange(self.n) % len(prompts)], predicted)
            figures["prompts"] = len(prompts)
        write_weights(self.folder / "shown" / f"{key}.safetensors", {"images": pictures[:SHOWN]})
        self.show(case, pictures[:SHOWN])
        return figures

    def show(self, case: Case, pictures: Tensor) -> None:
        """Writes the first images of a case as a picture."""
        rows = from_uint8(pictures[: len(pictures) // 4 * 4] if len(pictures) >= 4 else pictures)
        grid = rows.view(-1, min(4, len(rows)), *rows.shape[1:])
        name = "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in word) for word in case[:3])
        save_png(image_grid({"": grid}), self.folder / "pictures" / f"{name}.png")


def torch_device() -> str:
    """Returns the name of the GPU, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def shown_key(sha: str, settings: Mapping[str, Any]) -> str:
    """Returns the name of the file that keeps some images of a case."""
    return hashlib.sha256(json.dumps([sha, settings], sort_keys=True).encode()).hexdigest()[:24]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of figures in a folder, without incomplete ones."""
    file, lines = folder / "figures.jsonl", []
    for text in file.read_text().splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            LOG.warning("%s has an incomplete line", file)
    return lines


def choose_prompts(setup: Setup, settings: Mapping[str, Any], n: int) -> list[str]:
    """Returns the prompts or classes of a case: at most n, spread evenly."""
    if settings["ask"] == "class":
        return setup.classes
    if settings["ask"] != "text":
        return []
    both = [name for pair in zip(setup.names["train"], setup.names["held"], strict=True) for name in pair]
    names = setup.names.get(settings["names"], both)
    return [names[place] for place in evenly(len(names), min(n, len(names)))]


def sample_case(loaded: Loaded, prompts: Sequence[str], settings: Mapping[str, Any], n: int, batch: int) -> Samples:
    """Returns the images of a case; image i has seed i and prompt i, and prompts are reused after the last one."""
    common: dict[str, Any] = {"k": settings["k"], "seed": SEED}
    texts = [prompts[place % len(prompts)] for place in range(n)] if prompts else []
    if settings["ask"] == "popular":
        request = ways.popular(loaded, n, top_m=settings.get("top_m", TOP_M), **common)
    elif settings["ask"] == "text":
        request = ways.texts(loaded, texts, tokens=settings["tokens"], **common)
    else:
        request = ways.classes(loaded, texts, pool=POOL, tokens=settings["tokens"], **common)
    options = {"sampler": USUAL, "steps": USUAL_STEPS[USUAL], "batch_size": batch, "copy_threshold": None}
    return sample(loaded, request, Settings.of(scale=settings["scale"], **options))


def restricted(loaded: Loaded, rows: float | str) -> Loaded:
    """Returns a model with only some rows of its database: those of training pictures, or a share.

    The rows of a smaller share are among those of a larger one.
    """
    retriever = loaded.retriever
    if rows == 1.0:
        return loaded
    if rows == "train":
        kept = select_rows(retriever.database, ["split=train"])
    else:
        total = len(retriever.database)
        order = np.random.default_rng(SEED).permutation(total)
        kept = np.sort(order[: max(round(float(rows) * total), 1)])
    bound = Retriever(lambda: retriever.embedder, retriever.database, lambda: retriever.index, kept)
    return replace(loaded, retriever=bound)


def row_count(loaded: Loaded) -> int:
    """Returns the number of rows that neighbours come from."""
    rows = loaded.retriever.rows
    return len(loaded.retriever.database) if rows is None else len(rows)


def ceilings(embedder_of: str) -> list[Case]:
    """Returns the cases of real pictures, measured by the embedder of a model."""
    settings, parts = {"ask": "real", "embedder_of": embedder_of}, {"trained": "train", "held out": "held"}
    return [Case("concepts", f"real, {name}", "", {**settings, "names": part}) for name, part in parts.items()]


def measure_all(bench: Bench, cases: Sequence[Case]) -> tuple[dict[str, str], list[str]]:
    """Measures cases; an error in one of them does not stop the others.

    Returns:
        the errors by case, and the runs that are not trained.
    """
    broken: dict[str, str] = {}
    missing = sorted({case.run for case in cases if case.run and not is_trained(case.run, bench.folder)})
    measurable = [case for case in cases if case.run not in missing]
    for case in sorted(measurable, key=lambda case: case.run):  # so that every model is loaded once
        try:
            bench.measure(case)
        except Exception as error:
            LOG.exception("%s, %s", case.question, case.name)
            broken[f"{case.question}, {case.name}, {case.run}"] = f"{type(error).__name__}: {error}"
    return broken, missing
