"""Where pictures are compared: the CLIP that also finds neighbours, and a classifier that learned from pixels alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.style_classifier import judge, kept
from ldm.files import file_hash
from ldm.pictures import from_uint8, to_uint8
from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.features import device, feature_network
from rdm.evaluate.metrics import Moments, density_coverage, frechet_distance, precision_recall
from rdm.loading import Loaded

WIDTHS = (3, 48, 96, 192)
BATCH = 64
SPACES = ("clip", "pixels")


def class_of(entry: Mapping[str, str]) -> str:
    """Returns the class of a picture by its metadata: its category."""
    return entry["class_id"].split("/")[0]


@dataclass(frozen=True)
class Setup:
    """What all cases share.

    Attributes:
        classes: names.
        classifier: of classes, from pixels.
        accuracy: its accuracy on held-out pictures and reconstructions.
        features: of the pictures of each part of the data, by space, ``[n, D]``; CLIP's of length one.
        moments: of the same.
        names: of the concepts of each part, evenly spread, as many of one as of the other.
        class_by_name: the class of each name.
        real: the pictures of the names of each part, ``[M, 3, H, W] uint8``, their names' places and classes.
        clip: the network of the space ``clip``.
        about: what a report states.
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
    about: dict[str, Any]

    def see(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns features of pictures ``[N, 3, H, W] uint8`` by space, and the class each is taken for, ``[N]``."""
        return seen(self.clip, self.classifier, pictures)


@torch.inference_mode()
def seen(clip: Any, classifier: nn.Sequential, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Returns what both networks see: features by space, and classes."""
    near, body, called, place = [], [], [], device()
    classifier.to(place)
    for part in pictures.split(BATCH):
        images = from_uint8(part).to(place)
        near.append(clip.features(images)[0].float().cpu())
        pooled = classifier[:-1](images)
        body.append(pooled.cpu())
        called.append(classifier[-1](pooled).argmax(1).cpu())
    return {"clip": torch.cat(near), "pixels": torch.cat(body)}, torch.cat(called)


def set_up(loaded: Loaded, folder: Path, epochs: int, most: int = 256) -> Setup:
    """Returns what all cases share, made once and kept in a folder.

    Args:
        loaded: a model whose data and first stage those of all runs are.
        folder: where it is kept.
        epochs: of the classifier.
        most: names of each part.
    """
    parts = {"train": "train", "held": "validation"}
    data = {part: instantiate_from_config(loaded.data.dataset_configs[name]) for part, name in parts.items()}
    entries = {part: [images.metadata(n) for n in range(len(images))] for part, images in data.items()}
    classes = sorted({class_of(entry) for part in entries.values() for entry in part})
    classifier, accuracy = judge(loaded, folder, epochs, names=classes, label=class_of, widths=WIDTHS)
    clip = feature_network("unit:" + str(loaded.data.embedder_config["params"]["model"]))
    asked = {"classifier": file_hash(folder / "classifier.safetensors"), "clip": clip.fingerprint}
    features, real, pictures = {}, {}, {}
    for part, images in data.items():
        pictures[part] = torch.stack([to_uint8(images[n]["image"]) for n in range(len(images))])
        features[part] = kept(
            folder / f"features-{part}.safetensors",
            {**asked, "n": len(images)},
            lambda shown=pictures[part]: seen(clip, classifier, shown)[0],  # type: ignore[misc]
        )
    captions = {part: [entry["caption"] for entry in found] for part, found in entries.items()}
    alone = {part: list(dict.fromkeys(captions[part])) for part in captions}
    shared = set(alone["train"]) & set(alone["held"])
    if any(len(shared) < len(found) for found in alone.values()):
        alone = {part: [name for name in found if name not in shared] or found for part, found in alone.items()}
    total = min(most, *map(len, alone.values()))
    names = {part: [found[n] for n in evenly(len(found), total)] for part, found in alone.items()}
    known = {entry["caption"]: class_of(entry) for part in entries.values() for entry in part}
    for part, found in names.items():
        places = {name: place for place, name in enumerate(found)}
        rows = [row for row, name in enumerate(captions[part]) if name in places]
        real[part] = {
            "pictures": pictures[part][rows],
            "places": torch.tensor([places[captions[part][row]] for row in rows]),
            "classes": torch.tensor([classes.index(class_of(entries[part][row])) for row in rows]),
        }
    moments = {part: {space: Moments.of(x) for space, x in found.items()} for part, found in features.items()}
    about: dict[str, Any] = {"pictures": {part: len(images) for part, images in data.items()}, "classes": classes}
    about |= {**asked, "clip_is": "the CLIP that also finds the neighbours", "names": total, "device": str(device())}
    return Setup(classes, classifier, accuracy, features, moments, names, known, real, clip, about)


def quality(setup: Setup, features: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns distances, precision, recall, density and coverage of features ``[n, D]``, by space."""
    found: dict[str, float] = {}
    for space, made in features.items():
        moments, real = Moments.of(made), setup.features["train"][space]
        for part in ("train", "held"):
            found[f"{space}_fd_{part}"] = frechet_distance(setup.moments[part][space], moments)
        found |= {f"{space}_{k}": v for k, v in precision_recall(real, made, device=device())._asdict().items()}
        found |= {f"{space}_{k}": v for k, v in density_coverage(real, made, device=device())._asdict().items()}
    return {name: round(value, 5) for name, value in found.items()}


def accuracy(labels: Tensor, called: Tensor) -> dict[str, float]:
    """Returns how often images are taken for their class, of all and as the mean over classes."""
    right = (labels == called).float()
    by_class = [float(right[labels == label].mean()) for label in labels.unique()]
    both = {"class_accuracy": float(right.mean()), "class_balanced": sum(by_class) / len(by_class)}
    return {name: round(value, 4) for name, value in both.items()}


def unit_texts(loaded: Loaded, texts: list[str]) -> Tensor:
    """Returns vectors of texts of length one, ``[P, D]`` on the CPU."""
    with torch.inference_mode():
        return F.normalize(loaded.retriever.embedder.texts(texts).float(), dim=1).cpu()
