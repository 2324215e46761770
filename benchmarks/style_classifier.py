"""A classifier of drawing styles that is trained on pixels.

It judges samples independently of the CLIP that searches their neighbours. Pictures are uint8 ``[N, 3, H, W]``, and
labels are int64 ``[N]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_metadata, read_weights, write_weights
from ldm.files import file_hash
from ldm.pictures import from_uint8, to_uint8
from ldm.util import instantiate_from_config
from rdm.evaluate.features import device
from rdm.loading import Loaded

STYLES = ("noto", "noto-blob", "fluent-flat", "openmoji", "openmoji-line")
WIDTHS = (3, 24, 48, 96)
BATCH, RATE = 64, 3e-3
EVERY = 5  # one in so many training pictures is also used as its reconstruction by the first stage


def cached(file: Path, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors of a file; they are computed first if there is no file or if it has another key.

    Args:
        file: the file.
        key: everything that the tensors depend on.
        make: computes the tensors.
    """
    if not (file.is_file() and read_metadata(file).get("asked") == json.dumps(key)):
        write_weights(file, make(), metadata={"asked": key})
    return read_weights(file)


def network(classes: int, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Returns an untrained classifier of pictures ``[B, 3, H, W]`` in [-1, 1], of any size."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def train(
    pictures: Tensor, labels: Tensor, classes: int, *, epochs: int, widths: Sequence[int] = WIDTHS, seed: int = 0
) -> nn.Sequential:
    """Returns a trained classifier; a random half of the pictures is mirrored in each epoch."""
    place = device()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = network(classes, widths).to(place)
    optimizer = torch.optim.AdamW(classifier.parameters())
    steps = epochs * -(-len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(epochs):
        for places in torch.randperm(len(pictures), generator=generator).split(BATCH):
            images = from_uint8(pictures[places])
            mirrored = torch.rand(len(places), generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            optimizer.zero_grad()
            F.cross_entropy(classifier(images.to(place)), labels[places].to(place)).backward()
            optimizer.step()
            schedule.step()
    return classifier.eval().cpu()


@torch.inference_mode()
def predict(classifier: nn.Module, pictures: Tensor) -> Tensor:
    """Returns the predicted class of each picture, ``[N] int64``."""
    return torch.cat([classifier(from_uint8(part)).argmax(1) for part in pictures.split(BATCH)])


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Returns the number of pictures by label (rows) and predicted class (columns), ``[classes, classes] int64``."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def style_of(entry: Mapping[str, str]) -> str:
    """Returns the style of a picture from its metadata."""
    return entry["style"]


def judge(
    loaded: Loaded,
    folder: Path,
    epochs: int,
    *,
    names: Sequence[str] = STYLES,
    label: Callable[[Mapping[str, str]], str] = style_of,
    widths: Sequence[int] = WIDTHS,
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Returns the classifier and its accuracy on held-out pictures and reconstructions; trains it first if necessary.

    Args:
        loaded: a model with the training data and the first stage.
        folder: keeps the classifier and the reconstructions.
        epochs: number of training epochs.
        names: the classes; pictures of others are left out.
        label: returns the class of a picture from its metadata.
        widths: widths of the classifier's layers.
    """
    stage = loaded.diffusion
    key: dict[str, Any] = {"model": file_hash(loaded.path), "every": EVERY, "styles": list(names)}
    pictures, labels = {}, {}
    for part in ("train", "validation"):
        dataset = instantiate_from_config(loaded.data.dataset_configs[part])
        found = {n: label(dataset.metadata(n)) for n in range(len(dataset))}
        known = {n: names.index(name) for n, name in found.items() if name in names}
        pictures[part] = torch.stack([to_uint8(dataset[n]["image"]) for n in known])
        labels[part] = torch.tensor(list(known.values()))

    def reconstruct(images: Tensor) -> Tensor:
        parts = [from_uint8(part).to(stage.device) for part in images.split(BATCH)]
        return torch.cat([to_uint8(stage.to_image(stage.to_latent(part))).cpu() for part in parts])

    def learn() -> dict[str, Tensor]:
        both = (
            torch.cat([pictures["train"], reconstructions["train"]]),
            torch.cat([labels["train"], labels["train"][::EVERY]]),
        )
        return train(*both, len(names), epochs=epochs, widths=widths).state_dict()

    reconstructions = cached(
        folder / "reconstructions.safetensors",
        key,
        lambda: {name: reconstruct(images[:: EVERY if name == "train" else 1]) for name, images in pictures.items()},
    )
    key |= {"epochs": epochs} | ({} if widths == WIDTHS else {"widths": list(widths)})
    classifier = network(len(names), widths).eval()
    load_weights(classifier, cached(folder / "classifier.safetensors", key, learn))
    figures: dict[str, Any] = {"epochs": epochs, "reconstructed": f"1 in {EVERY}"}
    for name, images in (("pictures", pictures["validation"]), ("reconstructions", reconstructions["validation"])):
        counts = confusion(labels["validation"], predict(classifier, images), len(names))
        accuracy = round(float(counts.trace() / counts.sum()), 4)
        figures[name] = {"n": len(images), "accuracy": accuracy, "confusion": counts.tolist()}
    return classifier, figures
