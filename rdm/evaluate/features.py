"""Feature networks by name, each with a hash of its weights and preprocessing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_weights
from ldm.files import fetched
from ldm.modules.encoders import efficientnet
from ldm.modules.encoders.modules import OpenClipEmbedder
from ldm.pictures import to_uint8
from ldm.util import to_install

WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".safetensors")
UNIT = "unit:"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in the training of torchvision's networks


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that computes features of pictures.

    Attributes:
        name: the name that :func:`feature_network` was given.
        fingerprint: hash of weights and preprocessing; figures with different fingerprints cannot be compared.
        preprocessing: how a picture is prepared, in words.
        features: images ``[B, 3, H, W]`` in [-1, 1] -> features ``[B, D] float32`` and, of a classifier, logits
            ``[B, classes] float32``.
        classifies: whether the network has logits.
        texts: texts -> vectors ``[B, D] float32`` in the space of the features; only CLIP models have it.
    """

    name: str
    fingerprint: str
    preprocessing: str
    features: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    classifies: bool = False
    texts: Callable[[Sequence[str]], Tensor] | None = None

    def about(self) -> dict[str, str]:
        """Returns how a report describes the network."""
        return {"name": self.name, "fingerprint": self.fingerprint, "preprocessing": self.preprocessing}


def feature_network(name: str) -> FeatureNetwork:
    """Returns a feature network, on the GPU if there is one.

    Args:
        name: ``inception`` or ``inception:FILE``, the network of FID; ``NETWORK:FILE``, such as
            ``resnet18:resnet18.pth``, one of torchvision's classifiers; ``efficientnet_lite0`` or
            ``efficientnet_lite0:FILE``; else a CLIP: a folder or ``MODEL:PRETRAINED``. The prefix ``unit:`` scales the
            features to length one.

    Raises:
        FileNotFoundError: the file or folder does not exist.
        ValueError: the network is unknown, or its weights do not fit or cannot be fetched.
    """
    if name.startswith(UNIT):
        return unit_length(feature_network(name.removeprefix(UNIT)))
    network, _, file = name.partition(":")
    if network == "inception":
        return inception(name, Path(file) if file else None)
    if network == efficientnet.NAME:
        return efficientnet_classifier(name, file or None)
    if file.endswith(WEIGHT_FILES):
        from torchvision import models

        if network in models.list_models(module=models):
            return classifier(name, network, file)
    embedder = OpenClipEmbedder(*clip_name(name)).to(device())
    size = f"{embedder.image_size} pixels"
    words = f"shorter side to {size}, antialiased bicubic, centre cut out; raw vectors of CLIP"
    return FeatureNetwork(
        name, embedder.fingerprint, words, lambda x: (embedder.images(x), None), False, embedder.texts
    )


def unit_length(network: FeatureNetwork) -> FeatureNetwork:
    """Returns the network with features scaled to length one, because CLIP is trained on directions alone."""

    def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network.features(images)
        return F.normalize(features, dim=1), logits

    fingerprint = hashlib.sha256(f"{UNIT}{network.fingerprint}".encode()).hexdigest()[:32]
    words = f"{network.preprocessing}; scaled to length one"
    return replace(network, name=UNIT + network.name, fingerprint=fingerprint, preprocessing=words, features=compute)


def clip_name(name: str) -> tuple[str, str | None]:
    """Splits the name of a CLIP into model and weights: ``models/clip/emoji`` or ``ViT-B-32-quickgelu:openai``."""
    model, _, pretrained = name.partition(":")
    return model, pretrained or None


def classifier(name: str, network: str, file: str) -> FeatureNetwork:
    """Returns one of torchvision's classifiers; its features are the input of its last layer.

    Args:
        name: the name that :func:`feature_network` was given.
        network: torchvision's name of the classifier.
        file: its weights, as torchvision distributes them.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the weights are of another network, or the network has no linear layer at its end.
    """
    from torchvision.models import get_model, get_model_weights

    options = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
    model = get_model(network, weights=None, **options).eval().requires_grad_(False)
    load_weights(model, read_weights(file), source=file, allow=("*.num_batches_tracked",))
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{network} has no linear layer at its end; name another of torchvision's networks")
    side = int(get_model_weights(network).DEFAULT.transforms().crop_size[0])
    entering: list[Tensor] = []
    linear[-1].register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    mean, std = (torch.tensor(numbers, device=device()).view(3, 1, 1) for numbers in (MEAN, STD))
    model.to(device())

    @torch.inference_mode()
    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.to(mean.device) / 2 + 0.5
        if pixels.shape[2:] != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        logits = model((pixels - mean) / std)
        return entering.pop().flatten(1), logits

    # The words are part of the fingerprint: with others, earlier reports could not be repeated.
    words = f"whole picture to {side} x {side} pixels, antialiased bilinear, ImageNet's mean and deviation; what "
    words += f"enters the last layer of {network}"
    return FeatureNetwork(name, _fingerprint(words, model.state_dict()), words, compute, True)


def efficientnet_classifier(name: str, file: str | None) -> FeatureNetwork:
    """Returns EfficientNet-Lite0; its features are the input of its last layer.

    Args:
        name: the name that :func:`feature_network` was given.
        file: its weights; None for those of the installed package.

    Raises:
        FileNotFoundError: the file does not exist, or the package is not installed.
        ValueError: the weights are of another network.
    """
    model: Any = efficientnet.efficientnet_lite0(file).to(device())

    @torch.inference_mode()
    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        features = model.forward_head(model.forward_features(efficientnet.seen_at_224(images.to(device()))), True)
        return features, model.classifier(features)

    # The words are part of the fingerprint: with others, earlier reports could not be repeated.
    words = f"{efficientnet.PREPROCESSING}; what enters the last layer of {efficientnet.NAME}"
    return FeatureNetwork(name, _fingerprint(words, model.state_dict()), words, compute, True)


def inception(name: str, file: Path | None) -> FeatureNetwork:
    """Returns torch-fidelity's Inception, the network of FID, with pooled features and logits without bias.

    Args:
        name: the name that :func:`feature_network` was given.
        file: its weights, ``weights-inception-2015-12-05-6726825d.pth``; it is fetched if not given.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: torch-fidelity is not installed, or the weights do not fit or cannot be fetched.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError(
            f"features 'inception' need torch-fidelity: {to_install('metrics')}, or name other features"
        ) from error
    file = file or fetched(
        URL_INCEPTION_V3,
        "fetch this file of torch-fidelity elsewhere and name 'inception:FILE', or other features, such as "
        "models/clip/emoji",
    )
    read_weights(file)  # refuses a pickle with code, which torch-fidelity would run
    try:
        model = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
        )
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{file} does not fit torch-fidelity's Inception; give its {URL_INCEPTION_V3.rpartition('/')[2]}"
        ) from error
    model.to(device())

    @torch.inference_mode()
    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = model(to_uint8(images).to(device()))
        return features, logits

    # The words are part of the fingerprint: with others, earlier reports could not be repeated.
    words = "8 bits, whole picture to 299 x 299 pixels as TensorFlow 1 does, bilinear without antialiasing"
    return FeatureNetwork(name, _fingerprint(words, model.state_dict()), words, compute, True)


def _fingerprint(words: str, state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(words).encode())
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def device() -> torch.device:
    """Returns the device of the networks and distances: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
