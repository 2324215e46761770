"""Feature networks by name: their features, their fingerprints, and their error messages."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pictures import write_clip
from torchvision.models import get_model

from ldm.checkpoint import write_weights
from ldm.modules.encoders.modules import OpenClipEmbedder
from ldm.pictures import to_uint8
from rdm.evaluate.features import MEAN, STD, feature_network

IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_clip_is_the_embedder(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    network, embedder = feature_network(folder), OpenClipEmbedder(folder)
    vectors, logits = network.features(IMAGES)
    assert torch.equal(vectors, embedder.images(IMAGES)) and logits is None
    assert network.texts is not None and torch.equal(network.texts(["a"]), embedder.texts(["a"]))
    assert network.about() == {
        "name": folder,
        "fingerprint": embedder.fingerprint,
        "preprocessing": "shorter side to 8 pixels, antialiased bicubic, centre cut out; raw vectors of CLIP",
    }
    assert feature_network(write_clip(tmp_path / "other", seed=1)).fingerprint != network.fingerprint


def test_unit_length_is_other_features(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    network, unit = feature_network(folder), feature_network(f"unit:{folder}")
    assert torch.allclose(unit.features(IMAGES)[0], F.normalize(network.features(IMAGES)[0], dim=1))
    assert unit.fingerprint != network.fingerprint and unit.name == f"unit:{folder}" and unit.texts is not None


def test_a_classifier_gives_what_enters_its_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_model("mobilenet_v2", weights=None).eval()
    write_weights(tmp_path / "net.safetensors", model.state_dict())
    network = feature_network(f"mobilenet_v2:{tmp_path / 'net.safetensors'}")
    features, logits = network.features(IMAGES)
    assert logits is not None and network.texts is None
    pixels = F.interpolate(IMAGES / 2 + 0.5, (224, 224), mode="bilinear", antialias=True).clamp(0, 1)
    with torch.no_grad():
        pooled = model.features((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        pooled = pooled.mean((2, 3))
        assert torch.allclose(features, pooled, atol=1e-5) and torch.allclose(
            logits, model.classifier(pooled), atol=1e-5
        )
    again, _ = network.features(IMAGES[:1])
    assert torch.allclose(again, features[:1], atol=1e-5)  # the layer's inputs of one call do not enter the next


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A file of untrained weights of torch-fidelity's Inception, whose constructor takes no model without a file."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.save({}, tmp_path / "none.pth")

    class Untrained(module.FeatureExtractorInceptionV3):  # type: ignore[name-defined]
        def load_state_dict(self, *_: object) -> None:
            """Keeps the random weights of the constructor."""

    torch.manual_seed(0)
    model = Untrained("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth"))
    torch.save(model.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_inception_is_torch_fidelitys(untrained: Path) -> None:
    from torch_fidelity import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("inception", names, feature_extractor_weights_path=str(untrained))
    pixels = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = feature_network(f"inception:{untrained}")
    for found, expected in zip(network.features(pixels / 127.5 - 1), theirs(pixels), strict=True):
        assert found is not None and torch.equal(found, expected) and found.std() > 0
    assert network.name == f"inception:{untrained}" and len(network.fingerprint) == 32


def test_bytes_are_those_of_files() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(every / 127.5 - 1), every)
    assert to_uint8(torch.tensor([-1.2, 1.2, 0.001])).tolist() == [0, 255, 128]


def test_what_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(module, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(
        ValueError,
        match="weights-inception-2015-12-05-6726825d.pth .*torch-fidelity",
    ):
        feature_network("inception")
    assert not list((tmp_path / "hub").rglob("*.pth"))
    write_weights(tmp_path / "net.safetensors", get_model("squeezenet1_1", weights=None).state_dict())
    with pytest.raises(ValueError, match="squeezenet1_1"):
        feature_network(f"squeezenet1_1:{tmp_path / 'net.safetensors'}")
    with pytest.raises(ValueError, match="ResNet"):
        feature_network(f"resnet18:{tmp_path / 'net.safetensors'}")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth"):
        feature_network(f"inception:{tmp_path / 'other.pth'}")
    torch.save({"a": Fraction(1, 2)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match="more.pth"):
        feature_network(f"inception:{tmp_path / 'more.pth'}")
    with pytest.raises(FileNotFoundError, match="none.pth"):
        feature_network("inception:none.pth")
    with pytest.raises(FileNotFoundError, match="models/none"):
        feature_network("models/none")
