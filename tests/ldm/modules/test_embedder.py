"""The open_clip embedder: fingerprints, preprocessing, refusals."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from pictures import write_clip

from ldm.checkpoint import read_weights, write_weights
from ldm.modules.encoders.clip import openai_model
from ldm.modules.encoders.modules import FrozenClipImageEmbedder, FrozenCLIPTextEmbedder, OpenClipEmbedder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_vectors_are_raw_float32_and_independent_of_the_batch(clip: str) -> None:
    embedder = OpenClipEmbedder(clip)
    images = pictures(3, 8, 8)
    vectors = embedder.images(images)
    assert vectors.shape == (3, embedder.dim) == (3, 8) and vectors.dtype == torch.float32
    assert torch.allclose(vectors, embedder.clip.encode_image(images), atol=1e-6)  # mean and std are 0.5
    assert torch.allclose(vectors[1:2], embedder.images(images[1:2]), atol=1e-6)
    assert not torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-2)
    texts = embedder.texts(["a cat", "two dogs"])
    assert texts.shape == (2, 8) and not torch.allclose(texts[0], texts[1])
    assert not vectors.requires_grad and not any(p.requires_grad for p in embedder.parameters())
    assert embedder.name == clip and not embedder.training


def test_fingerprint_follows_weights_and_preprocessing(clip: str, tmp_path: Path) -> None:
    prints = [OpenClipEmbedder(clip).fingerprint, OpenClipEmbedder(clip, preprocessing="compvis").fingerprint]
    shutil.copytree(clip, copy := tmp_path / "copy")
    assert OpenClipEmbedder(str(copy)).fingerprint == prints[0]  # the place does not matter
    state = read_weights(copy / "open_clip_model.safetensors")
    state["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    write_weights(copy / "open_clip_model.safetensors", state)
    prints.append(OpenClipEmbedder(str(copy)).fingerprint)
    config = copy / "open_clip_config.json"
    config.write_text(config.read_text().replace('"mean": [0.5, 0.5, 0.5]', '"mean": [0.4, 0.5, 0.5]'))
    prints.append(OpenClipEmbedder(str(copy)).fingerprint)
    assert len(set(prints)) == 4 and {len(text) for text in prints} == {32}


def test_clip_resize_keeps_the_shape_and_cuts_the_centre(clip: str) -> None:
    embedder = OpenClipEmbedder(clip)
    images = pictures(2, 16, 24)
    smaller = F.interpolate(images, (8, 12), mode="bicubic", antialias=True)
    assert torch.equal(embedder.resize(images), smaller[:, :, :, 2:10])
    same = pictures(1, 8, 8)
    assert torch.equal(embedder.resize(same), same)


def test_compvis_resize_squeezes_without_antialiasing_and_keeps_corners(clip: str) -> None:
    embedder = OpenClipEmbedder(clip, preprocessing="compvis")
    images = pictures(2, 15, 22)
    got = embedder.resize(images)
    assert got.shape == (2, 3, 8, 8)
    assert torch.allclose(got[:, :, ::7, ::7], images[:, :, ::14, ::21], atol=1e-5)
    assert torch.allclose(got, F.interpolate(images, (8, 8), mode="bicubic", align_corners=True), atol=1e-5)


def test_wrong_inputs_are_refused(clip: str) -> None:
    embedder = OpenClipEmbedder(clip)
    with pytest.raises(ValueError, match=r"images: got shape \(3, 8, 8\), expected \[B, 3, H, W\]"):
        embedder.images(torch.zeros(3, 8, 8))
    assert torch.isfinite(embedder.texts(["a b c d e f"])).all()
    with pytest.raises(ValueError, match="9 tokens.* 8"):
        embedder.texts(["cat", "a b c d e f g"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "ViT-B-33"}, ValueError, "open_clip has no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32"}, ValueError, "has no weights.*'pretrained'"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, ValueError, "name the model ViT-B-32-quickgelu"),
        ({"model": "RN50", "pretrained": "openai"}, ValueError, "name the model RN50-quickgelu"),
        (
            {"model": "ViT-B-32", "pretrained": "opnai"},
            ValueError,
            "has no weights 'opnai'; expected a file or one of",
        ),
        ({"model": "no/such"}, FileNotFoundError, "no CLIP model in no/such"),
        (
            {"model": "ViT-B-32", "preprocessing": "x"},
            ValueError,
            "preprocessing: got 'x', expected one of clip, compvis",
        ),
    ],
)
def test_wrong_names_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OpenClipEmbedder(**options)


def test_a_folder_takes_no_second_weights(clip: str) -> None:
    with pytest.raises(ValueError, match="pretrained=openai"):
        OpenClipEmbedder(clip, "openai")


def test_compvis_text_condition_repeats_a_normalised_vector(clip: str) -> None:
    raw = OpenClipEmbedder(clip).texts(["a cat", "two dogs"])
    embedder = FrozenCLIPTextEmbedder(clip, n_repeat=3)
    tokens = embedder.encode(["a cat", "two dogs"])
    assert tokens.shape == (2, 3, 8) and torch.equal(tokens[:, 0], tokens[:, 2])
    assert torch.allclose(tokens[:, 0], raw / raw.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(FrozenCLIPTextEmbedder(clip, normalize=False)("two dogs"), raw[1:], atol=1e-6)
    with pytest.raises(ValueError, match="max_length.*77.* 8"):
        FrozenCLIPTextEmbedder(clip, max_length=77)


def test_compvis_image_embedder_uses_compvis_preprocessing(clip: str) -> None:
    images = pictures(2, 15, 22)
    embedder = FrozenClipImageEmbedder(clip)
    assert torch.equal(embedder(images), OpenClipEmbedder(clip, preprocessing="compvis").images(images))
    with pytest.raises(ValueError, match="antialias=True"):
        FrozenClipImageEmbedder(clip, antialias=True)


def test_openai_names_mean_their_weights_with_the_right_activation(clip: str) -> None:
    assert openai_model("ViT-L/14", None) == ("ViT-L-14-quickgelu", "openai")
    assert openai_model("ViT-L/14@336px", None) == ("ViT-L-14-336-quickgelu", "openai")
    assert openai_model("RN50x4", None) == ("RN50x4-quickgelu", "openai")
    assert openai_model("ViT-B-32-quickgelu", "laion400m_e32") == ("ViT-B-32-quickgelu", "laion400m_e32")
    assert openai_model(clip, None) == (clip, None)


def resnet(folder: Path) -> str:
    """Writes a tiny untrained CLIP with a ResNet, whose third stage is 2x2 for its pictures of 32 pixels."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    model = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_weights(folder / "open_clip_model.safetensors", open_clip.CLIP(**model).state_dict())
    return str(folder)


def test_tokens_are_the_patches_of_a_vit_after_its_last_norm(clip: str) -> None:
    embedder, images = OpenClipEmbedder(clip), pictures(3, 8, 8)
    tower = embedder.clip.visual
    patches = tower.ln_post(tower.transformer(tower._embeds(images)))[:, 1:]  # mean and std are 0.5
    tokens = embedder.tokens(images, 2)
    assert tokens.shape == (3, 4, 16) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, patches)
    torch.testing.assert_close(embedder.tokens(images, 1), patches.mean(1, keepdim=True))
    torch.testing.assert_close(embedder.tokens(images[1:2], 2), tokens[1:2])
    upper = images.clone()
    upper[:, :, :4, 4:] = 0  # the second patch of the first row
    changed = (tower._embeds(upper) - tower._embeds(images)).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, False, True, False, False]


def test_tokens_are_the_third_stage_of_a_resnet(tmp_path: Path) -> None:
    embedder, images = OpenClipEmbedder(resnet(tmp_path / "resnet")), pictures(2, 32, 32)
    tower = embedder.clip.visual
    stage = tower.layer3(tower.layer2(tower.layer1(tower.stem(images))))
    assert stage.shape == (2, 128, 2, 2)
    torch.testing.assert_close(embedder.tokens(images, 2), stage.flatten(2).transpose(1, 2))


def test_a_grid_that_does_not_fit_and_a_tower_without_a_map_are_named(clip: str) -> None:
    embedder = OpenClipEmbedder(clip)
    for wrong in (0, 3, 4):
        with pytest.raises(ValueError, match=f"grid: got {wrong}, expected 1 to 2, the side of the feature map"):
            embedder.tokens(pictures(1, 8, 8), wrong)
    with pytest.raises(ValueError, match=r"images: got shape \(1, 4, 8, 8\)"):
        embedder.tokens(torch.zeros(1, 4, 8, 8), 1)
    embedder.clip.visual = torch.nn.Flatten()
    with pytest.raises(ValueError, match=r"vision tower of .*Flatten.* has no feature map"):
        embedder.tokens(pictures(1, 8, 8), 1)
