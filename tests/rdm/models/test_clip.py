"""The small CLIP: what texts say, the loss, and its export."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from rdm.models.clip import (
    FACTS,
    SmallCLIP,
    caption_picture,
    contrastive_loss,
    positives,
    random_affine,
    retrieval_figures,
)

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "patch_size": 4, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.5, 0.25, 0.2], "interpolation": "bicubic"}
ITEM = {
    "caption": "butterfly",
    "keywords": "insect, wings, pretty",
    "category": "animals-nature",
    "subcategory": "animal-bug",
    "style": "openmoji-line",
}


@pytest.fixture(scope="module")
def model() -> SmallCLIP:
    torch.manual_seed(0)
    return SmallCLIP(MODEL, PREPROCESS)


def test_positives_by_hand() -> None:
    facts = torch.tensor([[1, 10, 20, 30], [2, 10, 20, 31], [3, 11, 20, 30]])
    asked = torch.tensor([[1, -1, -1, -1], [-1, 10, -1, -1], [-1, -1, 20, 30], [-1, -1, -1, -1]])
    expected = [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]]
    assert positives(facts, asked).int().tolist() == expected


def test_contrastive_loss_is_cross_entropy_where_each_has_one_positive() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert contrastive_loss(logits, torch.eye(5, dtype=torch.bool)) == pytest.approx(expected.item(), rel=1e-6)
    both = torch.ones(5, 5, dtype=torch.bool)  # everything fits everything: log 5 at equal logits
    assert contrastive_loss(torch.zeros(5, 5), both) == pytest.approx(np.log(5), rel=1e-6)


def test_captions_name_what_they_say() -> None:
    seen = set()
    for seed in range(400):
        text, named = caption_picture(ITEM, np.random.default_rng(seed))
        says = dict(zip(FACTS, named, strict=True))
        seen.add(named)
        assert says["concept"] == any(word in text.split() for word in ("butterfly", "insect", "wings", "pretty"))
        assert says["subcategory"] == ("animal bug" in text)
        assert says["category"] == ("animals nature" in text)
        assert says["style"] == ("openmoji line" in text)
        assert sum(named[:3]) == 1
    assert len(seen) == 6
    assert caption_picture(ITEM, np.random.default_rng(3)) == caption_picture(ITEM, np.random.default_rng(3))
    bare = [caption_picture(ITEM | {"keywords": ""}, np.random.default_rng(seed)) for seed in range(40)]
    assert all(("butterfly" in text) == named[0] for text, named in bare)


def test_random_affine_stays_within_its_bounds() -> None:
    axis = (torch.arange(16) + 0.5) / 8 - 1
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flip(0)  # x, y of every pixel
    images = torch.cat([coordinates, torch.ones(1, 16, 16)])[None].repeat(200, 1, 1, 1)
    moved = random_affine(images, torch.Generator().manual_seed(0))
    assert torch.allclose(moved[:, 2], torch.ones(200, 16, 16), atol=1e-6)  # a constant stays one
    centre = moved[:, :2, 7:9, 7:9].mean((2, 3))
    assert centre.abs().max() <= 0.2 + 1e-6 and centre.abs().max() > 0.18
    across = (moved[:, :2, 7:9, 9:11] - moved[:, :2, 7:9, 5:7]).mean((2, 3)) / 0.5
    length, angle = across.norm(dim=1), torch.atan2(across[:, 1], across[:, 0])
    assert 0.8 - 1e-4 <= length.min() < 0.85 and 1.15 < length.max() <= 1.2 + 1e-4
    assert 0.19 < angle.abs().max() <= 0.21 + 1e-4
    assert torch.equal(moved, random_affine(images, torch.Generator().manual_seed(0)))


def test_untaught_words_read_like_the_article() -> None:
    torch.manual_seed(0)
    model = SmallCLIP(MODEL, PREPROCESS)
    before = model.clip.token_embedding.weight.detach().clone()
    after = model.neutral_embedding(["red cat."])
    article, red, cat, dog, stop = (model.tokenizer.encode(word)[0] for word in ("a", "red", "cat", "dog", "."))
    for known in (article, red, cat, model.tokenizer.eot_token_id):
        assert torch.equal(after[known], before[known])
    for unknown in (dog, stop):
        assert torch.equal(after[unknown], before[article])
    assert torch.equal(model.clip.token_embedding.weight, before)


def test_training_step_is_the_loss_of_its_parts() -> None:
    torch.manual_seed(0)
    model = SmallCLIP(MODEL, PREPROCESS, seed=3)
    batch: dict = {key: [value, value + "x"] for key, value in ITEM.items()}
    batch |= {"concept": ["c1", "c2"], "image": torch.rand(2, 3, 8, 8) * 2 - 1}
    assert model.training_step(batch, 0).item() == model.training_step(batch, 1).item()  # same step, same draw
    batch["concept"] = batch["style"] = batch["category"] = batch["subcategory"] = ["same", "same"]
    batch["image"] = batch["image"][:1].repeat(2, 1, 1, 1) * 0  # every text fits both of two equal pictures
    with torch.no_grad():
        model.clip.logit_scale.zero_()
        assert model.training_step(batch, 0).item() == pytest.approx(np.log(2), abs=0.2)


def test_retrieval_figures_of_a_perfect_and_a_wrong_order(model: SmallCLIP) -> None:
    names = ["cat", "dog", "a bee"]
    vectors = model.encode_text(names)
    figures = retrieval_figures(model, vectors, names, ["flat"] * 3, names)
    assert figures == {
        "recall@1": 1.0,
        "recall@5": 1.0,
        "text_recall@1": 1.0,
        "text_recall@5": 1.0,
        "style_accuracy": 1.0,
    }
    wrong = retrieval_figures(model, vectors.roll(1, 0), names, ["flat"] * 3, names)
    assert wrong["recall@1"] == wrong["text_recall@1"] == 0.0 and wrong["recall@5"] == 1.0


def test_export_loads_in_open_clip_with_equal_embeddings(model: SmallCLIP, tmp_path: Path) -> None:
    model.export(tmp_path / "clip", ["a cat", "two dogs"])
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    assert json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())["model_cfg"] == MODEL
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    assert (tuple(loaded.visual.image_mean), tuple(loaded.visual.image_std)) == (
        (0.4, 0.5, 0.6),
        (0.5, 0.25, 0.2),
    )
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(PREPROCESS[key]).view(3, 1, 1) for key in ("mean", "std"))
    model.eval()
    with torch.no_grad():
        by_image = F.normalize(loaded.encode_image((images / 2 + 0.5 - mean) / std), dim=-1)
        by_text = F.normalize(loaded.encode_text(tokenizer(["a cat", "two dogs"])), dim=-1)
        assert torch.allclose(by_image, model.encode_image(images), atol=2e-3)
        assert torch.allclose(by_text, model.encode_text(["a cat", "two dogs"]), atol=2e-3)
        assert (by_image[0] - by_image[1]).abs().max() > 1e-2
