"""Figures of pictures, of files or sampled by a model, against a reference set: one report with the whole protocol."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.files import write_json
from ldm.util import instantiate_from_config
from rdm.cli.sampling import add_model_options, model_options
from rdm.evaluate.extract import extract
from rdm.evaluate.features import FeatureNetwork, device, feature_network
from rdm.evaluate.measures import MEASURES, Seen
from rdm.evaluate.protocol import machine, versions
from rdm.evaluate.sources import ModelSamples, PictureFiles, read_captions, read_prompts
from rdm.loading import find_checkpoint, load
from rdm.retrieval.config import source_config

SAMPLES = 1000  # images of a model where no number is asked for


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
            "versions": versions(),
            "machine": machine(device()),
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
        config = source_config(args["captions"], 1, args["captions_split"])
        prompts = read_captions(instantiate_from_config(config), args["captions"], args["n"])
    parser = argparse.ArgumentParser()
    add_model_options(parser)  # for those that are younger than the report which is repeated
    options = model_options(parser.parse_args([], argparse.Namespace(**args)))
    options |= {"tokens": args["tokens"], "text_scale": args["text_scale"]}
    options |= {"top_m": args["top_m"], "weighted": args["use_weights"], "seed": args["seed"], "k": args["knn"]}
    samples = ModelSamples(loaded, args["n"] or len(prompts) or SAMPLES, prompts, **options)
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
