"""Does a model repeat the pictures it looks at, or those it was trained on? A report, its curves and the worst pairs.

Each sample is compared with all rows of the database and with all training pictures. How like the nearest one is says
something only beside pictures of which the answer is known:

* held-out pictures, real ones of things that were not trained on;
* training pictures, each compared with the others: further drawings of things that were. A model that draws anew what
  it knows is about as like its training pictures as these are like each other;
* copies, training pictures through the first stage, the most faithful ones that the model can make.

Near-duplicates of the real pictures are left out, as in neighbour tables: they would be copies themselves.
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
    joined,
    nearest,
)
from rdm.evaluate.protocol import machine, versions
from rdm.evaluate.sources import FirstStageCopies, ModelSamples, read_captions, write_samples
from rdm.loading import Loaded
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.patches.identity import ids_hash, images_hash
from rdm.sampling.copies import DIGITS
from rdm.sampling.record import ABOUT_A_ROW, written_images
from rdm.sampling.settings import THRESHOLD, Settings

LOG = logging.getLogger(__name__)
CAPTIONS = WAYS[1]
HELD_OUT, TRAINING, COPIES, DATABASE = "held-out", "training", "copies", "database"
REAL = (HELD_OUT, TRAINING)
KNOWN = (*REAL, COPIES)  # groups that samples are set against
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BEYOND = 0.95  # samples are counted that are more like their nearest than this part of the real pictures
THRESHOLDS = sorted({0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.985, 0.99, 0.999, THRESHOLD})
_SAMPLES = 256  # of each way, where no number is given
_SHOWN = 128  # side of a picture among the worst, in pixels, at least
_STRIP = 14  # height of the words below it

Found = Mapping[str, Mapping[str, Mapping[str, Nearest]]]
"""What is nearest in a set to the pictures of a group by a feature: ``found[set][group][feature]``."""


def memorisation(loaded: Loaded, args: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Returns a report of how like samples are to rows and training pictures; writes it, its curves and worst pairs.

    Args:
        loaded: the model with its database.
        args: the command line of ``scripts/evaluate.py memorisation`` by name.
        settings: of the sampling.

    Raises:
        ValueError: fewer than two samples, a config that names no held-out pictures, or no matplotlib.
        FileNotFoundError: no such pictures.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the curves need matplotlib: pip install -e '.[dev]'")
    known = loaded.data.dataset_configs
    if "validation" not in known:
        raise ValueError(f"the config of {loaded.path} has no validation pictures; add data.params.validation to it")
    configs = {HELD_OUT: known["validation"], TRAINING: known["train"]}
    real = {name: instantiate_from_config(config) for name, config in configs.items()}
    outdir, size = Path(args["outdir"]), loaded.data.image_size
    files, made_by = _samples(loaded, real[HELD_OUT], args, settings)
    samples = {name: SampleFiles(group, size) for name, group in files.items()}
    features = Features(loaded.retriever, size)
    groups, near = {}, dict.fromkeys(REAL, loaded.data.near_duplicate)
    for name, images in {**samples, **real, COPIES: FirstStageCopies(real[TRAINING], loaded)}.items():
        numbers = evenly(len(images), len(images) if name in samples else min(len(images), args["n_real"]))
        groups[name] = joined(_bar(blocks_of_images(images, numbers, features), len(numbers), f"reading {name}"))
    rows, every = blocks_of_rows(features), range(len(real[TRAINING]))
    found = {DATABASE: nearest(groups, _bar(rows, len(features.database), "rows"), near)}
    trained = blocks_of_images(real[TRAINING], every, features)
    found[TRAINING] = nearest(groups, _bar(trained, len(every), "training pictures"), near)
    shown, worst = worst_pairs(found, samples, features.database, real[TRAINING], args["rows"])
    report = {
        "figures": figures(found),
        "worst": worst,
        "protocol": {
            "command": "memorisation",
            "arguments": dict(args),
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
            "compared": f"by cosine, {size} pixels a side, samples and copies as they are written with 8 bits; of "
            "the others n_real, evenly spread; real pictures with none of the same id, nor with near-duplicates",
            "near_duplicate": loaded.data.near_duplicate,
            "features": features.about(),
            "versions": {**versions(), "matplotlib": importlib.metadata.version("matplotlib")},
            "machine": machine(loaded.model.device),
        },
    }
    draw_curves(found, outdir / "memorisation.png")
    save_png(shown, outdir / "worst.png")
    write_json(outdir / "results.json", report)
    return report


def _bar(parts: Any, n: int, what: str) -> Any:
    return tqdm(parts, what, block_count(n), unit="block")


def _samples(
    loaded: Loaded, held_out: Any, args: Mapping[str, Any], settings: Settings
) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Returns the files of each group of samples, and how each was made; captions are those of held-out pictures."""
    n = args["n"] or _SAMPLES
    files: dict[str, list[Path]] = {}
    made_by: dict[str, Any] = {}
    if args["images"]:
        found, runs = written_images(args["images"])
        files["images"], made_by["images"] = found[: args["n"]], runs
        n = len(files["images"])
        if {run["checkpoint_sha256"] for run in runs} - {file_hash(loaded.path)}:
            LOG.warning("%s holds images of another model than %s", args["images"], loaded.path)
    if n < 2:
        raise ValueError(f"got n={n}, expected at least 2 samples: figures are of a distribution")
    asked = {"k": args["knn"], "seed": args["seed"], "top_m": args["top_m"], "weighted": False}
    where = f"the validation pictures of {loaded.path}"
    for way in () if args["images"] else args["ways"]:
        prompts = read_captions(held_out, where, n) if way == CAPTIONS else ()
        samples = ModelSamples(loaded, n, prompts, settings=settings, **asked)
        files[way] = write_samples(Path(args["outdir"]) / "samples" / way, samples)
        made_by[way] = samples.about
    return files, made_by


def figures(found: Found) -> dict[str, Any]:
    """Returns the figures of each feature and set."""
    features = dict.fromkeys(feature for groups in found.values() for group in groups.values() for feature in group)
    return {
        feature: {
            name: compared({group: of[feature].similarities for group, of in groups.items()})
            for name, groups in found.items()
        }
        for feature in features
    }


def compared(groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the figures of each group's similarities ``[n]``; those of samples are set against the known ones.

    ``beyond`` is the part of the samples that are as like their nearest as 5 % of the real pictures are, or more, and
    the part of the copies, without which a small one says nothing.
    ``nearer`` is the probability that a sample is more like its nearest than a real picture is; that it is not a half
    is what Meehan et al. 2020 test for, in distances to training pictures.
    """
    told: dict[str, Any] = {}
    for name, values in groups.items():
        quantiles = {str(q): _rounded(np.quantile(values, q)) for q in QUANTILES}
        told[name] = {"n": len(values), "quantiles": quantiles, "shares": shares(values, THRESHOLDS)}
        if name in KNOWN:
            continue
        for other in REAL:
            threshold = float(np.quantile(groups[other], BEYOND))
            told[name][f"beyond {BEYOND:.0%} of {other}"] = {
                "threshold": _rounded(threshold),
                "share": _rounded(np.mean(values >= threshold)),
                "copies": _rounded(np.mean(groups[COPIES] >= threshold)),
            }
            told[name][f"nearer than {other}"] = _rounded(probability_nearer(values, groups[other]))
    return told


def shares(similarities: np.ndarray, thresholds: Sequence[float]) -> dict[str, float]:
    """Returns the part of similarities ``[n]`` at or above each threshold."""
    return {str(threshold): _rounded(np.mean(similarities >= threshold)) for threshold in thresholds}


def probability_nearer(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the probability that one of the first is larger than one of the second; equal ones count half.

    It is the statistic of Mann and Whitney 1947, divided by the number of pairs.
    """
    ordered = np.sort(second)
    places = np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")
    return float(places.mean() / 2 / len(second))


def _rounded(value: Any) -> float:
    return round(float(value), DIGITS)


def summary(report: Mapping[str, Any]) -> list[str]:
    """Returns lines to print: of each feature, set and group of samples, beside the real pictures."""
    lines = []
    for feature, sets in report["figures"].items():
        for name, groups in sets.items():
            for group in (group for group in groups if group not in KNOWN):
                medians = ", ".join(f"{other} {groups[other]['quantiles']['0.5']:.3f}" for other in (group, *KNOWN))
                lines.append(f"nearest in {name} by {feature}, median likeness: {medians}")
                for other in REAL:
                    beyond = groups[group][f"beyond {BEYOND:.0%} of {other}"]
                    lines.append(
                        f"  {beyond['share']:.1%} at or above {beyond['threshold']:.4f}, "
                        f"as {1 - BEYOND:.0%} of {other} pictures and {beyond['copies']:.0%} of copies"
                    )
    return lines


def worst_pairs(
    found: Found, samples: Mapping[str, SampleFiles], database: RetrievalDatabase, train: Any, count: int
) -> tuple[Tensor, dict[str, list[dict[str, Any]]]]:
    """Returns a picture ``[3, H', W'] uint8`` of the samples most like a row or a training picture, and what they are.

    Each feature has three columns: sample, nearest row, nearest training picture.

    Args:
        found: what is nearest to what.
        samples: the groups of samples.
        database: the rows.
        train: the training pictures.
        count: lines of the picture, at most.
    """
    columns: dict[str, Tensor] = {}
    told: dict[str, list[dict[str, Any]]] = {}
    for feature in next(iter(found[DATABASE].values())):
        shown: list[list[Tensor]] = []
        told[feature] = []
        for group, place in likest(found, feature, list(samples), count):
            to_row, to_picture = found[DATABASE][group][feature], found[TRAINING][group][feature]
            row, number = int(to_row.numbers[place]), int(to_picture.numbers[place])
            near, nearer = _rounded(to_row.similarities[place]), _rounded(to_picture.similarities[place])
            files, about = samples[group], train.metadata(number)
            row_image = pictures(database, np.array([row]), files.size)[0]
            captions = (f"{group} {files.files[place].stem}", f"row, {near:.4f}", f"training, {nearer:.4f}")
            images = (files[place]["image"], row_image, train[number]["image"])
            shown.append([captioned(*pair) for pair in zip(images, captions, strict=True)])
            of_row = {"row": row, "similarity": near, **_about(database.metadata([row])[0])}
            of_picture = {"number": number, "similarity": nearer, **_about({"image_id": about["id"], **about})}
            told[feature].append({"sample": str(files.files[place]), DATABASE: of_row, TRAINING: of_picture})
        columns[feature] = torch.stack([torch.stack(line) for line in shown])
    return image_grid(columns), told


def likest(found: Found, feature: str, groups: Sequence[str], count: int) -> list[tuple[str, int]]:
    """Returns group and place of the pictures that are most like one of any set, the most alike first."""
    places = [(group, place) for group in groups for place in range(len(found[DATABASE][group][feature].numbers))]
    values = [np.concatenate([of[group][feature].similarities for group in groups]) for of in found.values()]
    return [places[i] for i in np.argsort(-np.max(values, axis=0), kind="stable")[:count]]


def _about(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in ABOUT_A_ROW}


def captioned(image: Tensor, text: str) -> Tensor:
    """Returns an image ``[3, H, W]`` in [-1, 1], enlarged by a whole number where it is small, over a line of words."""
    factor = -(-_SHOWN // image.shape[2])
    large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    strip = Image.new("RGB", (large.shape[2], _STRIP), "white")
    ImageDraw.Draw(strip).text((0, 0), text, fill="black", font_size=11)
    words = from_uint8(torch.from_numpy(np.array(strip)).permute(2, 0, 1))
    return torch.cat([large, words], dim=1)


def draw_curves(found: Found, file: Path) -> None:
    """Draws, for each feature and set, the part of each group that is as like its nearest as a threshold, or more."""
    from matplotlib.figure import Figure

    features = list(next(iter(found[DATABASE].values())))
    figure = Figure(figsize=(4.5 * len(found), 3.2 * len(features)), layout="constrained")
    axes = figure.subplots(len(features), len(found), squeeze=False)
    for line, feature in zip(axes, features, strict=True):
        for place, (name, groups) in zip(line, found.items(), strict=True):
            for group, near in groups.items():
                values = np.sort(near[feature].similarities)
                share, style = np.arange(len(values), 0, -1) / len(values), "--" if group in KNOWN else "-"
                place.plot(values, share, style, drawstyle="steps-pre", label=f"{group} ({len(values)})")
            what = f"likeness ({feature}) to the nearest {'row' if name == DATABASE else 'training picture'}"
            place.set(yscale="log", xlabel=what, ylabel="part at or above")
            place.grid(alpha=0.3, which="both")
            place.legend(fontsize=8)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
