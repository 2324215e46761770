"""The feature spaces of the figures: the CLIP that also searches neighbours, and a classifier trained on pixels.

Beside them stands the judge of concepts, :mod:`rdm.models.judge`, which was trained on pixels, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.style_classifier import cached, judge
from ldm.files import file_hash
from ldm.pictures import from_uint8, to_uint8
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.concepts import judgement, shares
from rdm.evaluate.features import device, feature_network
from rdm.evaluate.metrics import Moments, density_coverage, frechet_distance, precision_recall
from rdm.loading import Loaded
from rdm.models.judge import Judge, load_judge

CONCEPTS = "models/judge/emoji"
WIDTHS = (3, 48, 96, 192)
BATCH = 64
SPACES = ("clip", "pixels")
COMMON = 0.95  # quantile of the held-out pictures' likenesses above which an image counts as a copy


def class_of(entry: Mapping[str, str]) -> str:
    """Returns the category of a picture from its metadata."""
    return entry["class_id"].split("/")[0]


@dataclass(frozen=True)
class Setup:
    """The data and networks that all cases share.

    Attributes:
        classes: names of the classes.
        classifier: classifier of pixels.
        accuracy: its accuracy on held-out pictures and reconstructions.
        features: features ``[n, D]`` of the pictures by part of the data and space; those of CLIP are unit vectors.
        moments: moments of these features.
        names: names of concepts by part, spread evenly, the same number for each part.
        class_by_name: class of each name.
        real: for each part, the pictures ``[M, 3, H, W] uint8`` of its names, with the numbers of names and classes.
        clip: network of the space ``clip``.
        likeness: for each space, the cosine similarity to the nearest training picture that 5 % of the held-out
            pictures exceed.
        judge: names the concept that a picture shows.
        about: description for the report.
    """

    classes: list[str]
    classifier: nn.Sequential
    accuracy: dict[str, Any]
    features: dict[str, dict[str, Tensor]]
    moments: dict[str, dict[str, Moments]]
    names: dict[str, list[str]]
    class_by_name: dict[str, str]
    real: dict[str, dict[str, Tensor]]
    clip: Any
    likeness: dict[str, float]
    judge: Judge
    about: dict[str, Any]

    def features_of(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the features of pictures ``[N, 3, H, W] uint8`` by space, and their predicted classes ``[N]``."""
        return compute_features(self.clip, self.classifier, pictures)


@torch.inference_mode()
def compute_features(clip: Any, classifier: nn.Sequential, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the features of both networks by space, and the predicted classes."""
    clip_features, pixel_features, classes, place = [], [], [], device()
    classifier.to(place)
    for part in pictures.split(BATCH):
        images = from_uint8(part).to(place)
        clip_features.append(clip.features(images)[0].float().cpu())
        pooled = classifier[:-1](images)
        pixel_features.append(pooled.cpu())
        classes.append(classifier[-1](pooled).argmax(1).cpu())
    return {"clip": torch.cat(clip_features), "pixels": torch.cat(pixel_features)}, torch.cat(classes)


def set_up(loaded: Loaded, folder: Path, epochs: int, most: int = 256) -> Setup:
    """Returns the data and networks that all cases share; computes them once and keeps them in a folder.

    Args:
        loaded: a model with the data and the first stage of all runs.
        folder: keeps the results.
        epochs: training epochs of the classifier.
        most: largest number of names in each part.
    """
    parts = {"train": "train", "held": "validation"}
    data = {part: instantiate_from_config(loaded.data.dataset_configs[name]) for part, name in parts.items()}
    entries = {part: [images.metadata(n) for n in range(len(images))] for part, images in data.items()}
    classes = sorted({class_of(entry) for part in entries.values() for entry in part})
    classifier, accuracy = judge(loaded, folder, epochs, names=classes, label=class_of, widths=WIDTHS)
    clip = feature_network("unit:" + str(loaded.data.embedder_config["params"]["model"]))
    key = {"classifier": file_hash(folder / "classifier.safetensors"), "clip": clip.fingerprint}
    features, real, pictures = {}, {}, {}
    for part, images in data.items():
        pictures[part] = torch.stack([to_uint8(images[n]["image"]) for n in range(len(images))])
        features[part] = cached(
            folder / f"features-{part}.safetensors",
            {**key, "n": len(images)},
            lambda shown=pictures[part]: compute_features(clip, classifier, shown)[0],  # type: ignore[misc]
        )
    captions = {part: [entry["caption"] for entry in of_part] for part, of_part in entries.items()}
    concepts = {part: list(dict.fromkeys(captions[part])) for part in captions}
    shared = set(concepts["train"]) & set(concepts["held"])
    if any(len(shared) < len(listed) for listed in concepts.values()):
        concepts = {
            part: [name for name in listed if name not in shared] or listed for part, listed in concepts.items()
        }
    total = min(most, *map(len, concepts.values()))
    names = {part: [listed[n] for n in evenly(len(listed), total)] for part, listed in concepts.items()}
    known = {entry["caption"]: class_of(entry) for part in entries.values() for entry in part}
    for part, chosen in names.items():
        places = {name: place for place, name in enumerate(chosen)}
        rows = [row for row, name in enumerate(captions[part]) if name in places]
        real[part] = {
            "pictures": pictures[part][rows],
            "places": torch.tensor([places[captions[part][row]] for row in rows]),
            "classes": torch.tensor([classes.index(class_of(entries[part][row])) for row in rows]),
        }
    moments = {part: {space: Moments.of(x) for space, x in spaces.items()} for part, spaces in features.items()}
    about: dict[str, Any] = {"pictures": {part: len(images) for part, images in data.items()}, "classes": classes}
    about |= {**key, "clip_is": "the CLIP that also finds the neighbours", "names": total, "device": str(device())}
    likeness = {
        space: float(likenesses(features["held"][space], features["train"][space]).quantile(COMMON)) for space in SPACES
    }
    concept_judge = load_judge(CONCEPTS)
    return Setup(
        classes, classifier, accuracy, features, moments, names, known, real, clip, likeness, concept_judge, about
    )


def likenesses(features: Tensor, others: Tensor) -> Tensor:
    """Returns the cosine similarity of features ``[n, D]`` to the nearest one of others ``[m, D]``, ``[n]``."""
    unit = F.normalize(others, dim=1).T
    return torch.cat([(F.normalize(part, dim=1) @ unit).amax(1) for part in features.split(BATCH)])


def judged(setup: Setup, pictures: Tensor, names: list[str]) -> dict[str, float]:
    """Returns the shares of pictures ``[N, 3, H, W] uint8`` whose name the judge gives first, or among five.

    Args:
        setup: holds the judge.
        pictures: the pictures.
        names: the name of each picture. Pictures with a name that the judge does not know are left out.
    """
    known = {name: concept for concept, name in setup.judge.concepts.items()}
    places = [place for place, name in enumerate(names) if name in known]
    if not places:
        return {}
    images = from_uint8(pictures[places])
    found = shares(judgement(setup.judge, images, [known[names[place]] for place in places])[0])
    return {f"judge_{top}": found[top] for top in ("top1", "top5")}


def quality(setup: Setup, features: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns distances, precision, recall, density, coverage and copies of features ``[n, D]``, by space."""
    figures: dict[str, float] = {}
    for space, generated in features.items():
        moments, real = Moments.of(generated), setup.features["train"][space]
        for part in ("train", "held"):
            figures[f"{space}_fd_{part}"] = frechet_distance(setup.moments[part][space], moments)
        figures |= {f"{space}_{k}": v for k, v in precision_recall(real, generated, device=device())._asdict().items()}
        figures |= {f"{space}_{k}": v for k, v in density_coverage(real, generated, device=device())._asdict().items()}
        figures[f"{space}_copies"] = float((likenesses(generated, real) >= setup.likeness[space]).float().mean())
    return {name: round(value, 5) for name, value in figures.items()}


def accuracy(labels: Tensor, predicted: Tensor) -> dict[str, float]:
    """Returns the accuracy of predicted classes, over all images and as the mean over classes."""
    right = (labels == predicted).float()
    by_class = [float(right[labels == label].mean()) for label in labels.unique()]
    both = {"class_accuracy": float(right.mean()), "class_balanced": sum(by_class) / len(by_class)}
    return {name: round(value, 4) for name, value in both.items()}


def unit_texts(loaded: Loaded, texts: list[str]) -> Tensor:
    """Returns the unit vectors of texts, ``[P, D]`` on the CPU."""
    with torch.inference_mode():
        return F.normalize(loaded.retriever.embedder.texts(texts).float(), dim=1).cpu()
