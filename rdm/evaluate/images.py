"""Measures pictures in files, or samples of a model, against a reference set, and reports the whole protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.data.decode import Size
from ldm.files import write_json
from ldm.util import instantiate_from_config
from rdm.evaluate.extract import extract
from rdm.evaluate.features import FeatureNetwork, device, feature_network
from rdm.evaluate.measures import MEASURES, FeatureSets
from rdm.evaluate.options import Comparison, FileOptions, SampleOptions
from rdm.evaluate.plain_samples import samples_of
from rdm.evaluate.protocol import machine, versions
from rdm.evaluate.sources import ModelSamples, PictureFiles, read_captions, read_prompts, size_of
from rdm.loading import find_checkpoint, load
from rdm.retrieval.config import source_config
from rdm.sampling.settings import Settings

SAMPLES = 1000  # images of a model if neither a number nor prompts are given


@dataclass(frozen=True)
class Plan:
    """An evaluation that is prepared: everything is opened and checked, nothing is measured yet.

    Attributes:
        arguments: the command line by name, as the report stores it.
        options: the options that both commands share.
        networks: the feature networks.
        pictures: the pictures to evaluate.
        reference: the reference pictures, if any.
        measures: for each network, the names of the measures to compute.
    """

    arguments: Mapping[str, Any]
    options: Comparison
    networks: Sequence[FeatureNetwork]
    pictures: PictureFiles | ModelSamples
    reference: PictureFiles | None
    measures: Sequence[Sequence[str]]

    def protocol(self) -> dict[str, Any]:
        """Returns everything that is needed to repeat the figures."""
        names = [name for name in MEASURES if any(name in measures for measures in self.measures)]
        return {
            "command": self.options.command,
            "arguments": dict(self.arguments),
            "pictures": self.pictures.about,
            "reference": None if self.reference is None else self.reference.about,
            "features": [network.about() for network in self.networks],
            "metrics": {name: MEASURES[name].words for name in names},
            "versions": versions(),
            "machine": machine(device()),
        }


def prepare(arguments: Mapping[str, Any]) -> Plan:
    """Opens the networks and pictures of an evaluation and decides which figures to compute.

    Args:
        arguments: the command line of ``images`` or ``samples`` of ``scripts/evaluate.py``, by name.

    Raises:
        ValueError: pictures, networks or metrics do not fit each other, or an option is missing.
        FileNotFoundError: a file does not exist.
    """
    options = Comparison.of_command_line(arguments)
    networks = [feature_network(name) for name in options.features]
    pictures: PictureFiles | ModelSamples
    if options.command == "images":
        files = FileOptions.of_command_line(arguments)
        pictures = PictureFiles(files.path, files.split, files.size, files.n, files.num_workers)
        size = pictures.dataset.size
    else:
        samples = SampleOptions.of_command_line(arguments)
        # The report names the file itself, because another run may be the newest when the report is repeated.
        samples = replace(samples, ckpt=str(find_checkpoint(samples.ckpt)))
        arguments = {**arguments, "ckpt": samples.ckpt}
        pictures, size = _samples(samples, Settings.of_command_line(arguments))
    reference = None
    if options.reference:
        reference = PictureFiles(
            options.reference, options.reference_split, size, options.reference_n, options.num_workers
        )
    measures = _measures(options.metrics, networks, reference is not None, all(pictures.captions))
    return Plan(arguments, options, networks, pictures, reference, measures)


def _measures(
    metrics: Sequence[str] | None, networks: Sequence[FeatureNetwork], has_reference: bool, has_captions: bool
) -> list[list[str]]:
    """Returns for each network the names of the measures to compute.

    Args:
        metrics: names of the metrics that are wanted; None takes all that are possible.
        networks: the feature networks.
        has_reference: whether there are reference pictures.
        has_captions: whether every picture has a caption.

    Raises:
        ValueError: a metric cannot be computed, or a network has nothing to compute.
    """
    possible = []
    for network in networks:
        has = {"reference": has_reference, "captions": has_captions}
        has |= {"logits": network.classifies, "texts": network.texts is not None}
        possible.append([name for name, measure in MEASURES.items() if all(has[need] for need in measure.needs)])
    for name in metrics or ():
        if not any(name in names for names in possible):
            needs = " and ".join(MEASURES[name].needs)
            raise ValueError(f"{name} needs {needs}, of which some is missing; see --reference and --features")
    wanted = [[name for name in names if not metrics or name in metrics] for names in possible]
    for network, names in zip(networks, wanted, strict=True):
        if not names:
            raise ValueError(f"nothing can be measured by features {network.name} alone; give --reference or captions")
    return wanted


def _samples(options: SampleOptions, settings: Settings) -> tuple[ModelSamples, Size]:
    """Returns the images of a model, and their size in pixels."""
    loaded = load(options.ckpt, options.database, options.only, options.config, options.same_outline, options.agree)
    prompts: Sequence[str] = read_prompts(options.from_file) if options.from_file else ()
    if options.captions:
        config = source_config(options.captions, 1, options.captions_split)
        prompts = read_captions(instantiate_from_config(config), options.captions, options.n)
    samples = samples_of(
        loaded,
        options.n or len(prompts) or SAMPLES,
        prompts,
        settings=settings,
        k=options.knn,
        seed=options.seed,
        top_m=options.top_m,
        weighted=options.use_weights,
        tokens=options.tokens,
    )
    return samples, size_of(loaded, settings)


def measure(plan: Plan) -> dict[str, Any]:
    """Returns the report: the figures by the name of the feature network, and the protocol."""
    cache, networks = plan.options.cache, plan.networks
    reference = [None] * len(networks) if plan.reference is None else extract(plan.reference, networks, cache)
    pictures = extract(plan.pictures, networks, cache)
    figures = {}
    for network, of_pictures, of_reference, names in zip(networks, pictures, reference, plan.measures, strict=True):
        sets = FeatureSets(network, of_pictures, of_reference, plan.pictures.captions, plan.options.kid_size)
        figures[network.name] = {key: value for name in names for key, value in MEASURES[name].run(sets).items()}
    return {"figures": figures, "protocol": plan.protocol()}


def evaluate_images(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the report of a command line, see :func:`prepare`, and returns it."""
    plan = prepare(arguments)
    report = measure(plan)
    write_json(Path(plan.options.outdir) / "results.json", report)
    return report
