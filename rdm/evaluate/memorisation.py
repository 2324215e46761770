"""Memorisation: does a model copy database rows or training pictures? A report with plots and the most similar pairs.

Each sample is compared with all database rows and with all training pictures. The similarity to the nearest one has a
meaning only in comparison with groups of pictures that are known to be copies or not:

* held-out pictures: real pictures of concepts that were not trained on;
* training pictures, each compared with all others: further pictures of trained concepts. A model that does not copy is
  about as similar to its training pictures as these are to each other;
* copies: training pictures that were reconstructed by the first stage, the most faithful copies that the model can
  produce.

A sample that is a copy of a neighbour which the model was shown is counted apart: it says how strongly the model
follows its neighbours, and not what it has memorised.

Near-duplicates of the held-out and training pictures are left out, as in neighbour tables, because they are copies.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from ldm.data.decode import short_size
from ldm.data.identity import ids_hash, images_hash
from ldm.files import atomic_path, file_hash, write_json
from ldm.pictures import from_uint8, image_grid, save_png
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.choices import WAYS
from rdm.evaluate.nearest import (
    Features,
    Nearest,
    SampleFiles,
    block_count,
    blocks_of_images,
    blocks_of_rows,
    concatenate,
    nearest,
)
from rdm.evaluate.options import MemorisationOptions
from rdm.evaluate.protocol import machine, versions
from rdm.evaluate.sources import FirstStageCopies, ModelSamples, read_captions, write_samples
from rdm.loading import Loaded
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.copies import DIGITS
from rdm.sampling.record import read_record, written_images
from rdm.sampling.recorded import ABOUT_A_ROW
from rdm.sampling.settings import THRESHOLD, Settings

LOG = logging.getLogger(__name__)
CAPTIONS = WAYS[1]
HELD_OUT, TRAINING, COPIES, DATABASE = "held-out", "training", "copies", "database"
REAL = (HELD_OUT, TRAINING)
KNOWN = (*REAL, COPIES)  # groups that samples are compared with
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BEYOND = 0.95  # quantile of the real pictures' similarities above which samples are counted
THRESHOLDS = sorted({0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985, 0.99, 0.999, THRESHOLD})
_SAMPLES = 256  # samples of each way, if no number is given
_SHOWN = 128  # smallest side in pixels of a picture in worst.png
_STRIP = 14  # height in pixels of the words below it

Neighbours = Mapping[str, Sequence[set[int]]]
"""The numbers of the pictures of a set, such as rows, that each sample of a group was shown."""
NearestBySet = Mapping[str, Mapping[str, Mapping[str, Nearest]]]
"""The nearest pictures in a set to the pictures of a group by a feature: ``nearest_in[set][group][feature]``."""


def memorisation(loaded: Loaded, arguments: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Compares samples with database rows and training pictures; writes the report and its pictures, and returns it.

    Args:
        loaded: the model with its database.
        arguments: the command line of ``scripts/evaluate.py memorisation``, by name.
        settings: how samples are drawn.

    Raises:
        ValueError: there are fewer than two samples, the config names no held-out pictures, matplotlib is not
            installed, or an option is missing.
        FileNotFoundError: the samples do not exist.
    """
    options = MemorisationOptions.of_command_line(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the plot needs matplotlib: pip install matplotlib")
    if loaded.is_plain:
        raise ValueError(
            f"{loaded.path} is a plain model, expected one with a database, whose embedder compares the pictures; "
            "measure plain models with the commands samples and images"
        )
    datasets = loaded.data.dataset_configs
    if "validation" not in datasets:
        raise ValueError(f"the config of {loaded.path} has no validation pictures; add data.params.validation to it")
    configs = {HELD_OUT: datasets["validation"], TRAINING: datasets["train"]}
    real = {name: instantiate_from_config(config) for name, config in configs.items()}
    outdir, size = Path(options.outdir), short_size(loaded.data.image_size)
    files, made_by, neighbours = _samples(loaded, real[HELD_OUT], options, settings)
    samples = {name: SampleFiles(group, size) for name, group in files.items()}
    features = Features(loaded.retriever, size)
    groups, near = {}, dict.fromkeys(REAL, loaded.data.near_duplicate)
    for name, images in {**samples, **real, COPIES: FirstStageCopies(real[TRAINING], loaded)}.items():
        numbers = evenly(len(images), len(images) if name in samples else min(len(images), options.n_real))
        groups[name] = concatenate(_bar(blocks_of_images(images, numbers, features), len(numbers), f"reading {name}"))
    rows, every = blocks_of_rows(features), range(len(real[TRAINING]))
    nearest_in = {DATABASE: nearest(groups, _bar(rows, len(features.database), "rows"), near)}
    training = blocks_of_images(real[TRAINING], every, features)
    nearest_in[TRAINING] = nearest(groups, _bar(training, len(every), "training pictures"), near)
    shown = {DATABASE: neighbours, TRAINING: _as_pictures(neighbours, features.database, real[TRAINING])}
    picture, worst = worst_pairs(nearest_in, samples, features.database, real[TRAINING], options.rows)
    report = {
        "figures": figures(nearest_in, shown),
        "worst": worst,
        "protocol": {
            "command": "memorisation",
            "arguments": dict(arguments),
            "model": {"path": str(loaded.path), "sha256": file_hash(loaded.path), "class": type(loaded.model).__name__},
            "samples": {
                name: {"n": len(group), "files_sha256": ids_hash(map(file_hash, group)), "made_by": made_by[name]}
                for name, group in files.items()
            },
            **{
                name: {"config": configs[name], "n": len(images), "ids_sha256": images_hash(images)}
                for name, images in real.items()
            },
            DATABASE: {"path": str(features.database.path), "fingerprint": features.database.fingerprint},
            "compared": f"by cosine at {size} pixels, samples and copies with 8 bits as in files; at most n_real real "
            "pictures and copies, spread evenly; real pictures not with the same id, nor with near-duplicates",
            "near_duplicate": loaded.data.near_duplicate,
            "features": features.about(),
            "versions": {**versions(), "matplotlib": importlib.metadata.version("matplotlib")},
            "machine": machine(loaded.model.device),
        },
    }
    draw_curves(nearest_in, outdir / "memorisation.png")
    save_png(picture, outdir / "worst.png")
    write_json(outdir / "results.json", report)
    return report


def _bar(parts: Any, n: int, what: str) -> Any:
    return tqdm(parts, what, block_count(n), unit="block")


def _samples(
    loaded: Loaded, held_out: Any, options: MemorisationOptions, settings: Settings
) -> tuple[dict[str, list[Path]], dict[str, Any], Neighbours]:
    """Returns the files of each group of samples, how each group was made, and the neighbours of its samples.

    The captions that are used as prompts are those of the held-out pictures.
    """
    n = options.n or _SAMPLES
    files: dict[str, list[Path]] = {}
    made_by: dict[str, Any] = {}
    neighbours: dict[str, list[set[int]]] = {}
    if options.images:
        written, runs = written_images(options.images)
        neighbours["images"] = [_recorded_rows(file, loaded) for file in written[: options.n]]
        files["images"], made_by["images"] = written[: options.n], runs
        n = len(files["images"])
        if {run["checkpoint_sha256"] for run in runs} - {file_hash(loaded.path)}:
            LOG.warning("%s holds images of another model than %s", options.images, loaded.path)
    if n < 2:
        raise ValueError(f"got n={n}, expected at least 2 samples: figures are of a distribution")
    where = f"the validation pictures of {loaded.path}"
    for way in () if options.images else options.ways:
        prompts = read_captions(held_out, where, n) if way == CAPTIONS else ()
        samples = ModelSamples(
            loaded, n, prompts, settings=settings, k=options.knn, seed=options.seed, top_m=options.top_m
        )
        files[way] = write_samples(Path(options.outdir) / "samples" / way, samples)
        made_by[way], neighbours[way] = samples.about, samples.neighbour_rows()
    return files, made_by, neighbours


def _recorded_rows(file: Path, loaded: Loaded) -> set[int]:
    """Returns the neighbours in the record of an image; none without a record, or if it is of another database."""
    try:
        record = read_record(file)
    except ValueError:
        return set()
    same = record.get("database_fingerprint") == loaded.retriever.database.fingerprint
    return {each["row"] for each in record.get("neighbours", ()) if "row" in each} if same else set()


def _as_pictures(neighbours: Neighbours, database: RetrievalDatabase, images: Any) -> Neighbours:
    """Returns the numbers of the images of a data set that the rows show, which each sample of a group was shown."""
    numbers = {images.metadata(number)["id"]: number for number in range(len(images))}

    def of_rows(rows: set[int]) -> set[int]:
        names = database.values("image_id", np.array(sorted(rows), dtype=np.int64)).tolist()
        return {numbers[name] for name in names if name in numbers}

    return {group: [of_rows(rows) for rows in of_group] for group, of_group in neighbours.items()}


def figures(nearest_in: NearestBySet, neighbours: Mapping[str, Neighbours]) -> dict[str, Any]:
    """Returns the figures of each feature and set.

    Args:
        nearest_in: the nearest pictures.
        neighbours: by set, the numbers of its pictures that each sample of a group was shown.
    """

    def shown(name: str, feature: str) -> dict[str, np.ndarray]:
        return {
            group: np.array([int(each) in those for each, those in zip(near[feature].numbers, of_group, strict=True)])
            for group, of_group in neighbours[name].items()
            if feature in (near := nearest_in[name][group])
        }

    features = dict.fromkeys(
        feature for groups in nearest_in.values() for group in groups.values() for feature in group
    )
    return {
        feature: {
            name: group_figures(
                {group: by_feature[feature].similarities for group, by_feature in groups.items()},
                shown(name, feature),
            )
            for name, groups in nearest_in.items()
        }
        for feature in features
    }


def group_figures(groups: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Returns the figures of each group's similarities ``[n]``, and for samples also the comparison with known groups.

    ``beyond`` is the share of the samples above the similarity that 5 % of the real pictures reach. The same share of
    the copies shows whether a small share of the samples has a meaning. ``neighbours`` is the part of it whose nearest
    picture is a neighbour that the model was shown (``shown [n] bool`` of a group).
    ``nearer`` is the probability that a sample is more similar to its nearest picture than a real picture is. Meehan et
    al. 2020 test whether it differs from a half, with distances to training pictures.
    """
    result: dict[str, Any] = {}
    for name, values in groups.items():
        quantiles = {str(q): _rounded(np.quantile(values, q)) for q in QUANTILES}
        result[name] = {"n": len(values), "quantiles": quantiles, "shares": shares(values, THRESHOLDS)}
        if name in KNOWN:
            continue
        for other in REAL:
            threshold = float(np.quantile(groups[other], BEYOND))
            result[name][f"beyond {BEYOND:.0%} of {other}"] = {
                "threshold": _rounded(threshold),
                "share": _rounded(np.mean(values >= threshold)),
                "copies": _rounded(np.mean(groups[COPIES] >= threshold)),
            }
            if shown and name in shown:
                of_neighbours = _rounded(np.mean((values >= threshold) & shown[name]))
                result[name][f"beyond {BEYOND:.0%} of {other}"]["neighbours"] = of_neighbours
            result[name][f"nearer than {other}"] = _rounded(probability_nearer(values, groups[other]))
    return result


def shares(similarities: np.ndarray, thresholds: Sequence[float]) -> dict[str, float]:
    """Returns the share of similarities ``[n]`` at or above each threshold."""
    return {str(threshold): _rounded(np.mean(similarities >= threshold)) for threshold in thresholds}


def probability_nearer(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the probability that a value of ``first`` exceeds one of ``second``; equal values count half.

    It is the statistic of Mann and Whitney 1947, divided by the number of pairs.
    """
    ordered = np.sort(second)
    places = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
    return float(places.mean() / 2 / len(second))


def _rounded(value: Any) -> float:
    return round(float(value), DIGITS)


def summary(report: Mapping[str, Any]) -> list[str]:
    """Returns lines to print: for each feature, set and group of samples, the comparison with the known groups."""
    lines = []
    for feature, sets in report["figures"].items():
        for name, groups in sets.items():
            for group in (group for group in groups if group not in KNOWN):
                medians = ", ".join(f"{other} {groups[other]['quantiles']['0.5']:.3f}" for other in (group, *KNOWN))
                lines.append(f"nearest in {name} by {feature}, median similarity: {medians}")
                for other in REAL:
                    beyond = groups[group][f"beyond {BEYOND:.0%} of {other}"]
                    own = beyond.get("neighbours")
                    told = "" if own is None else f" ({own:.1%} by a neighbour that they were shown)"
                    lines.append(
                        f"  {beyond['share']:.1%}{told} reach {beyond['threshold']:.4f}, which {1 - BEYOND:.0%} of "
                        f"{other} pictures and {beyond['copies']:.0%} of copies reach"
                    )
    return lines


def worst_pairs(
    nearest_in: NearestBySet, samples: Mapping[str, SampleFiles], database: RetrievalDatabase, train: Any, count: int
) -> tuple[Tensor, dict[str, list[dict[str, Any]]]]:
    """Returns a picture ``[3, H', W'] uint8`` of the samples that are most similar to a row or training picture.

    For each feature, it has three columns: sample, nearest row, nearest training picture.

    Args:
        nearest_in: the nearest pictures.
        samples: the groups of samples.
        database: the rows.
        train: the training pictures.
        count: largest number of samples for each feature.

    Returns:
        the picture, and for each feature a description of each sample with its nearest row and training picture.
    """
    columns: dict[str, Tensor] = {}
    pairs: dict[str, list[dict[str, Any]]] = {}
    for feature in next(iter(nearest_in[DATABASE].values())):
        shown: list[list[Tensor]] = []
        pairs[feature] = []
        for group, place in most_similar(nearest_in, feature, list(samples), count):
            to_row, to_picture = (nearest_in[name][group][feature] for name in (DATABASE, TRAINING))
            row, number = int(to_row.numbers[place]), int(to_picture.numbers[place])
            row_similarity = _rounded(to_row.similarities[place])
            picture_similarity = _rounded(to_picture.similarities[place])
            files, about = samples[group], train.metadata(number)
            row_image = pictures(database, np.array([row]), files.size)[0]
            captions = (
                f"{group} {files.files[place].stem}",
                f"row, {row_similarity:.4f}",
                f"training, {picture_similarity:.4f}",
            )
            images = (files[place]["image"], row_image, train[number]["image"])
            shown.append([captioned(*pair) for pair in zip(images, captions, strict=True)])
            of_row = {"row": row, "similarity": row_similarity, **_about(database.metadata([row])[0])}
            of_picture = {
                "number": number,
                "similarity": picture_similarity,
                **_about({"image_id": about["id"], **about}),
            }
            pairs[feature].append({"sample": str(files.files[place]), DATABASE: of_row, TRAINING: of_picture})
        columns[feature] = torch.stack([torch.stack(line) for line in shown])
    return image_grid(columns), pairs


def most_similar(nearest_in: NearestBySet, feature: str, groups: Sequence[str], count: int) -> list[tuple[str, int]]:
    """Returns group and place of the pictures with the highest similarity to a picture of any set, highest first."""
    places = [(group, place) for group in groups for place in range(len(nearest_in[DATABASE][group][feature].numbers))]
    values = [np.concatenate([near[group][feature].similarities for group in groups]) for near in nearest_in.values()]
    return [places[i] for i in np.argsort(-np.max(values, axis=0), kind="stable")[:count]]


def _about(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in ABOUT_A_ROW}


def captioned(image: Tensor, text: str) -> Tensor:
    """Returns an image ``[3, H, W]`` in [-1, 1] over a line of text; a small image is enlarged by a whole number."""
    factor = -(-_SHOWN // image.shape[2])
    large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    strip = Image.new("RGB", (large.shape[2], _STRIP), "white")
    ImageDraw.Draw(strip).text((0, 0), text, fill="black", font_size=11)
    words = from_uint8(torch.from_numpy(np.array(strip)).permute(2, 0, 1))
    return torch.cat([large, words], dim=1)


def draw_curves(nearest_in: NearestBySet, file: Path) -> None:
    """Plots, for each feature and set, the share of each group whose similarity reaches a threshold."""
    from matplotlib.figure import Figure

    features = list(next(iter(nearest_in[DATABASE].values())))
    figure = Figure(figsize=(4.5 * len(nearest_in), 3.2 * len(features)), layout="constrained")
    axes = figure.subplots(len(features), len(nearest_in), squeeze=False)
    for line, feature in zip(axes, features, strict=True):
        for place, (name, groups) in zip(line, nearest_in.items(), strict=True):
            for group, near in groups.items():
                values = np.sort(near[feature].similarities)
                share, style = np.arange(len(values), 0, -1) / len(values), "--" if group in KNOWN else "-"
                place.plot(values, share, style, drawstyle="steps-pre", label=f"{group} ({len(values)})")
            what = f"similarity ({feature}) to the nearest {'row' if name == DATABASE else 'training picture'}"
            place.set(yscale="log", xlabel=what, ylabel="share at or above")
            place.grid(alpha=0.3, which="both")
            place.legend(fontsize=8)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
