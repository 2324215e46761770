"""Figures of pictures, of files or sampled by a model, against a reference set: one report with the whole protocol."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ldm.files import read_json, write_json
from rdm.evaluate.extract import BATCH, Extracted, extract
from rdm.evaluate.features import FeatureNetwork, feature_network
from rdm.evaluate.metrics import (
    Moments,
    clip_score,
    cmmd,
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from rdm.evaluate.sources import ModelSamples, PictureFiles, read_prompts
from rdm.loading import find_checkpoint, load
from rdm.options import model_options
from rdm.retrieval.config import require

LOG = logging.getLogger(__name__)
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")
SEED = 0  # of subsets and splits
SUBSET = 1000  # pictures of a subset of the kernel distance, where there are twice as many
TOLERANCE = 1e-3  # relative; figures that differ by less count as equal


@dataclass(frozen=True)
class Seen:
    """What one network saw of all pictures.

    Attributes:
        network: the network.
        made: of the pictures in question.
        real: of the reference; none where there is none.
        captions: of the pictures in question.
        subset: pictures of a subset of the kernel distance, if chosen.
    """

    network: FeatureNetwork
    made: Extracted
    real: Extracted | None
    captions: Sequence[str]
    subset: int | None

    @property
    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of reference and pictures; asked for only where there is a reference."""
        return cast(Extracted, self.real).features, self.made.features

    @property
    def subset_size(self) -> int:
        """Pictures of a subset: half of the smaller set where it is small, so that subsets differ."""
        return self.subset or min(SUBSET, max(2, min(map(len, self.both)) // 2))


@dataclass(frozen=True)
class Measure:
    """One kind of figure.

    Attributes:
        words: how it is made.
        run: makes its figures.
        needs: what it cannot do without: ``reference``, ``captions``, ``logits`` or ``texts``.
    """

    words: str
    run: Callable[[Seen], Mapping[str, Any]]
    needs: tuple[str, ...] = ("reference",)


def _frechet(seen: Seen) -> dict[str, Any]:
    real, made = (Moments.of(features) for features in seen.both)
    if min(real.count, made.count) <= len(real.mean):
        LOG.warning(
            "%d pictures for features of width %d: the Frechet distance has little meaning",
            min(real.count, made.count),
            len(real.mean),
        )
    return {"frechet_distance": frechet_distance(real, made)}


def _kernel(seen: Seen) -> dict[str, Any]:
    found = kernel_distance(*seen.both, np.random.default_rng(SEED), size=seen.subset_size)
    return {"kernel_distance": {**found._asdict(), "subset": seen.subset_size}}


def _inception(seen: Seen) -> dict[str, Any]:
    logits = cast(torch.Tensor, seen.made.logits)
    return {"inception_score": inception_score(logits, np.random.default_rng(SEED))._asdict()}


def _clip(seen: Seen) -> dict[str, Any]:
    texts, total = cast(Callable[[Sequence[str]], torch.Tensor], seen.network.texts), 0.0
    for start in range(0, len(seen.captions), 8 * BATCH):
        part = slice(start, start + 8 * BATCH)
        try:
            vectors = texts(seen.captions[part]).cpu()
        except ValueError as error:
            raise ValueError(f"clip_score: {error}, or name other figures with --metrics") from error
        total += float(clip_score(seen.made.features[part], vectors).sum())
    return {"clip_score": total / len(seen.captions)}


MEASURES = {
    "frechet_distance": Measure(
        "of normal distributions, divided by n - 1; FID where features are inception", _frechet
    ),
    "kernel_distance": Measure(
        f"(x y / D + 1)^3, unbiased, 100 subsets drawn with seed {SEED}; KID where features are inception", _kernel
    ),
    "inception_score": Measure(f"10 splits in an order of seed {SEED}", _inception, ("logits",)),
    "precision_recall": Measure(
        "Kynkaanniemi et al. 2019, k 3, all pictures",
        lambda seen: precision_recall(*seen.both, device=_device())._asdict(),
    ),
    "density_coverage": Measure(
        "Naeem et al. 2020, k 5, surfaces included",
        lambda seen: density_coverage(*seen.both, device=_device())._asdict(),
    ),
    "cmmd": Measure(
        "Jayasumana et al. 2024: unit vectors, Gaussian of sigma 10, biased, times 1000; theirs is of "
        "ViT-L-14-336-quickgelu:openai",
        lambda seen: {"cmmd": cmmd(*seen.both, device=_device())},
        ("reference", "texts"),
    ),
    "clip_score": Measure("mean cosine of pictures and captions", _clip, ("captions", "texts")),
}


@dataclass(frozen=True)
class Plan:
    """All that is to be measured, opened and checked.

    Attributes:
        args: the command line by name.
        networks: whose features.
        made: the pictures in question.
        real: the reference.
        chosen: names of the measures of each network.
    """

    args: Mapping[str, Any]
    networks: Sequence[FeatureNetwork]
    made: PictureFiles | ModelSamples
    real: PictureFiles | None
    chosen: Sequence[Sequence[str]]

    def protocol(self) -> dict[str, Any]:
        """Returns all it takes to get the figures again."""
        names = [name for name in MEASURES if any(name in chosen for chosen in self.chosen)]
        return {
            "command": self.args["command"],
            "arguments": dict(self.args),
            "pictures": self.made.about,
            "reference": None if self.real is None else self.real.about,
            "features": [network.about() for network in self.networks],
            "metrics": {name: MEASURES[name].words for name in names},
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "machine": {
                "python": platform.python_version(),
                "device": str(_device()),
                "threads": torch.get_num_threads(),
            },
        }


def prepare(args: Mapping[str, Any]) -> Plan:
    """Opens networks and pictures of a command line of ``scripts/evaluate.py``, and chooses what can be measured.

    Args:
        args: of its commands ``images`` or ``samples``, by name.

    Raises:
        ValueError: pictures, networks or figures that do not fit.
        FileNotFoundError: no such file.
    """
    networks = [feature_network(name) for name in args["features"]]
    made: PictureFiles | ModelSamples
    if args["command"] == "images":
        made = PictureFiles(args["path"], args["split"], args["size"], args["n"], args["num_workers"])
        size = made.dataset.size
    else:
        args = {**args, "ckpt": str(find_checkpoint(args["ckpt"]))}  # another one may be the newest by and by
        made, size = _samples(args)
    real = None
    if args["reference"]:
        real = PictureFiles(args["reference"], args["reference_split"], size, args["reference_n"], args["num_workers"])
    there = {"reference": real is not None, "captions": all(made.captions)}
    chosen = []
    for network in networks:
        has = there | {"logits": network.classifies, "texts": network.texts is not None}
        chosen.append([name for name, measure in MEASURES.items() if all(has[need] for need in measure.needs)])
    if args["metrics"]:
        for name in args["metrics"]:
            if not any(name in possible for possible in chosen):
                needs = " and ".join(MEASURES[name].needs)
                raise ValueError(f"{name} needs {needs}, of which some is missing; see --reference and --features")
        chosen = [[name for name in possible if name in args["metrics"]] for possible in chosen]
    for network, names in zip(networks, chosen, strict=True):
        if not names:
            raise ValueError(f"nothing can be measured by features {network.name} alone; give --reference or captions")
    return Plan(args, networks, made, real, chosen)


def _samples(args: Mapping[str, Any]) -> tuple[ModelSamples, int]:
    """Returns the images of a model, and their height in pixels."""
    loaded = load(args["ckpt"], args["database"], args["only"], args["config"])
    prompts: Sequence[str] = read_prompts(args["from_file"]) if args["from_file"] else ()
    if args["captions"]:
        prompts = PictureFiles(args["captions"], args["captions_split"], size=1).captions
        if not all(prompts):
            raise ValueError(f"got pictures without a caption in {args['captions']}, expected one for each")
    options = model_options(argparse.Namespace(**args)) | {"tokens": args["tokens"], "text_scale": args["text_scale"]}
    options |= {"top_m": args["top_m"], "weighted": args["use_weights"], "seed": args["seed"], "k": args["knn"]}
    samples = ModelSamples(loaded, args["n"] or len(prompts) or SUBSET, prompts, **options)
    return samples, loaded.shape_of(args["H"], args["W"])[1] * loaded.model.first_stage_model.downsampling


def measure(plan: Plan) -> dict[str, Any]:
    """Returns the report: figures by the name of the features, and the protocol."""
    cache = plan.args["cache"]
    real = [None] * len(plan.networks) if plan.real is None else extract(plan.real, plan.networks, cache)
    made = extract(plan.made, plan.networks, cache)
    figures = {}
    for network, own, other, chosen in zip(plan.networks, made, real, plan.chosen, strict=True):
        seen = Seen(network, own, other, plan.made.captions, plan.args["kid_size"])
        figures[network.name] = {key: value for name in chosen for key, value in MEASURES[name].run(seen).items()}
    return {"figures": figures, "protocol": plan.protocol()}


def evaluate_images(args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report of a command line, see :func:`prepare`, and writes it."""
    report = measure(prepare(args))
    write_json(Path(args["outdir"]) / "results.json", report)
    return report


def repeat(file: str) -> dict[str, Any]:
    """Returns the report of another report's protocol, all made anew, and writes it beside it in ``repeat``.

    Args:
        file: a ``results.json`` of :func:`evaluate_images`.

    Returns:
        the report, with ``repeated``: each figure ``before`` and ``after``, and whether they are ``equal``.

    Raises:
        ValueError: no such report, or pictures, model or features are no longer those it was made with.
        FileNotFoundError: they are gone.
    """
    before = read_json(Path(file), "give a results.json of scripts/evaluate.py")
    protocol = before.get("protocol", {})
    if protocol.get("command") not in ("images", "samples"):
        raise ValueError(f"{file} is no report of 'images' or 'samples', expected one of scripts/evaluate.py")
    outdir = Path(file).parent / "repeat"
    cache = outdir / "features"
    require(protocol, ("arguments", "pictures", "reference", "features", "versions"), f"the protocol of {file}")
    plan = prepare({**protocol["arguments"], "outdir": str(outdir), "cache": str(cache)})
    now = json.loads(json.dumps(plan.protocol()))
    check_same(protocol, now, file)
    report = measure(plan)
    report["repeated"] = compared(before["figures"], report["figures"])
    write_json(outdir / "results.json", report)
    shutil.rmtree(cache)  # the next repetition is to be one
    return report


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], file: str) -> None:
    """Checks that two protocols are of the same pictures and features; other versions are logged.

    Raises:
        ValueError: they are not; names the first difference.
    """
    for old, new in zip(before["features"], now["features"], strict=True):
        if old["fingerprint"] != new["fingerprint"]:
            raise ValueError(
                f"features {new['name']} have fingerprint {new['fingerprint']}, {file} was made with "
                f"{old['fingerprint']}; figures of different features cannot be compared"
            )
    for what in ("pictures", "reference"):
        if before[what] is None:
            continue
        for key, value in before[what].items():
            if now[what].get(key) != value:
                raise ValueError(f"{what}: got {key} {now[what].get(key)}, {file} was made with {value}; restore them")
    for name, version in before["versions"].items():
        if now["versions"].get(name) != version:
            LOG.warning("%s is %s, was %s", name, now["versions"].get(name), version)


def compared(before: Mapping[str, Any], after: Mapping[str, Any], name: str = "") -> dict[str, dict[str, Any]]:
    """Returns each number of two trees of figures by its path: ``before``, ``after`` and whether they are ``equal``."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in before.items():
        path = f"{name} {key}".strip()
        if isinstance(value, Mapping):
            found |= compared(value, after[key], path)
        else:
            equal = abs(value - after[key]) <= TOLERANCE * max(abs(value), abs(after[key])) + 1e-9
            found[path] = {"before": value, "after": after[key], "equal": equal}
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
