"""The small CLIP: what texts say, the loss, and its export."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from ldm.callbacks import LastStep
from ldm.data import DataModule
from ldm.data.colours import COLOURS
from rdm.models.clip import SmallCLIP, contrastive_loss, items_of, random_affine, recolour, retrieval_figures

DATA = Path(__file__).parents[3] / "data" / "emoji" / "fluent.parquet"
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


def test_contrastive_loss_is_cross_entropy_where_each_has_one_positive() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert contrastive_loss(logits, torch.eye(5, dtype=torch.bool)) == pytest.approx(expected.item(), rel=1e-6)
    both = torch.ones(5, 5, dtype=torch.bool)  # everything fits everything: log 5 at equal logits
    assert contrastive_loss(torch.zeros(5, 5), both) == pytest.approx(np.log(5), rel=1e-6)


def test_recolouring_exchanges_channels_and_keeps_grey() -> None:
    images = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = images[:, :1, 0]
    others = recolour(images, np.random.default_rng(0))
    assert torch.equal(others.sort(1).values, images.sort(1).values)
    assert torch.equal(others[:, :, 0], images[:, :, 0])
    assert all(not torch.equal(a, b) for a, b in zip(images, others, strict=True))
    ramp = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(64, 3, 1, 1)
    ways = {tuple(way) for way in recolour(ramp, np.random.default_rng(1)).flatten(1).tolist()}
    assert len(ways) == 5  # every exchange occurs
    assert torch.equal(others, recolour(images, np.random.default_rng(0)))


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


def resnet(layers: list[int], text_layers: int) -> dict:
    vision = {"image_size": 32, "layers": layers, "width": 8, "head_width": 8}
    return MODEL | {"vision_cfg": vision, "text_cfg": MODEL["text_cfg"] | {"layers": text_layers}}


def test_a_clip_that_grew_from_a_smaller_one_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = SmallCLIP(resnet([1, 1, 1, 1], 1), PREPROCESS).eval()
    for weight in small.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    small.export(tmp_path, ["a red cat"])
    small = SmallCLIP(small.config["model_cfg"], PREPROCESS, start=str(tmp_path)).eval()
    large = SmallCLIP(resnet([1, 2, 3, 1], 2), PREPROCESS, start=str(tmp_path)).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.allclose(small.encode_image(images), large.encode_image(images), atol=1e-6)
    assert torch.allclose(small.encode_text(["a red cat"]), large.encode_text(["a red cat"]), atol=1e-6)
    assert len(large.clip.transformer.resblocks) == 2
    large.encode_image(images).sum().backward()
    assert large.clip.visual.layer3[2].bn3.weight.grad.abs().sum() > 0  # the identities learn
    with pytest.raises(ValueError, match=r"start=.*weights do not fit, such as .*expected a CLIP of the widths"):
        SmallCLIP(resnet([1, 1, 1, 1], 1) | {"embed_dim": 4}, PREPROCESS, start=str(tmp_path))


def batch_of(*changes: dict, image: torch.Tensor) -> dict:
    items = [ITEM | {"id": str(number)} | change for number, change in enumerate(changes)]
    return {key: [item[key] for item in items] for key in items[0]} | {"image": image}


def test_a_text_that_fits_all_pictures_teaches_nothing() -> None:
    torch.manual_seed(0)
    model = SmallCLIP(MODEL, PREPROCESS, seed=3)
    equal = batch_of({}, {}, image=torch.zeros(2, 3, 8, 8))
    with torch.no_grad():
        model.clip.logit_scale.zero_()
        assert model.training_step(equal, 0).item() == pytest.approx(np.log(2), abs=0.2)
        assert model.training_step(equal, 0).item() == model.training_step(equal, 1).item()  # same step, same draw
    assert model._colours == {"0": ("grey",), "1": ("grey",)}


def test_a_batch_ends_with_recoloured_copies_of_its_beginning() -> None:
    """Of four red squares the last becomes the first in another colour, which is measured."""
    model = SmallCLIP(MODEL, PREPROCESS, recoloured=0.25)
    red = torch.ones(4, 3, 8, 8)
    red[:, 1:, 2:6, 2:6] = -1.0
    batch = batch_of(*({"caption": name} for name in "abcd"), image=red.clone())
    drawn = [model.with_recoloured(batch, np.random.default_rng(seed)) for seed in range(20)]
    for images, items, colours in drawn:
        assert [item["caption"] for item in items] == ["a", "b", "c", "a"]
        assert torch.equal(images[:3], red[:3]) and colours[:3] == [("red",)] * 3
    assert {colours[3] for *_, colours in drawn} == {("red",), ("green",), ("blue",)}
    assert torch.equal(batch["image"], red)  # the batch itself is left as it was
    with pytest.raises(ValueError, match=r"recoloured: got 0.6, expected a share from 0 to 0.5"):
        SmallCLIP(MODEL, PREPROCESS, recoloured=0.6)


def test_what_a_data_set_does_not_know_is_empty() -> None:
    assert items_of({"caption": ["pear"], "style": ["flat"], "image": torch.zeros(1, 3, 8, 8)}) == [
        {"caption": "pear", "keywords": "", "category": "", "subcategory": "", "style": "flat"}
    ]


def test_rate_is_constant_until_the_final_decay() -> None:
    model = SmallCLIP(MODEL, PREPROCESS, learning_rate=1.0, warmup_steps=4, decay_steps=10)
    rates = []
    for total in (40, 100):  # a run of 40 steps, and the same prolonged
        model.trainer = pl.Trainer(max_steps=total, accelerator="cpu", logger=False, enable_checkpointing=False)
        factor = model.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
        rates.append([factor(step) for step in range(total + 1)])
    assert rates[0][:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[0][3:31]) == {1.0} and set(rates[1][3:91]) == {1.0}
    assert rates[0][30:] == pytest.approx([1 - k / 10 for k in range(11)]) == rates[1][90:]


def test_retrieval_figures_of_a_perfect_and_a_wrong_order(model: SmallCLIP) -> None:
    names = ["cat", "dog", "a bee"]
    items = [{"caption": name, "style": "flat", "colours": ("red",)} for name in names]
    vectors = model.encode_text(names)
    figures = retrieval_figures(model.encode_text, vectors, items, names)
    recalls = ("recall@1", "recall@5", "text_recall@1", "text_recall@5")
    assert {key: figures[key] for key in (*recalls, "style_accuracy")} == dict.fromkeys(
        (*recalls, "style_accuracy"), 1.0
    )
    wrong = retrieval_figures(model.encode_text, vectors.roll(1, 0), items, names)
    assert wrong["recall@1"] == wrong["text_recall@1"] == 0.0 and wrong["recall@5"] == 1.0


def test_colour_figures_choose_among_all_colours() -> None:
    """An encoder that reads the first word alone finds every colour, and no colour that is not asked for."""

    def encode(texts: Sequence[str]) -> torch.Tensor:
        words = [*COLOURS, "flat"]
        places = [words.index(word) if (word := text.split()[0]) in words else len(words) for text in texts]
        return F.one_hot(torch.tensor(places), len(words) + 1).float()

    named = [("red", "blue"), ("green",), ("grey",)]
    items = [{"caption": "pale heart", "style": "flat", "colours": colours} for colours in named]
    images = encode(["blue", "green", "black"])
    assert retrieval_figures(encode, images, items, ["pale heart"])["colour_accuracy"] == pytest.approx(2 / 3)


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


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    """Stopped after two steps and prolonged to four, a run has the weights of one that was never stopped."""

    def fit(steps: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = SmallCLIP(MODEL, PREPROCESS, warmup_steps=1, decay_steps=1)
        images = {"target": "ldm.data.ParquetImages", "params": {"files": str(DATA), "size": 8, "split": "val"}}
        trainer = pl.Trainer(
            default_root_dir=tmp_path,
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            callbacks=[LastStep(tmp_path / "run.ckpt")],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=DataModule(batch_size=16, train=images), ckpt_path=checkpoint, weights_only=True)
        return {name: weight.clone() for name, weight in model.state_dict().items()}

    whole = fit(4)
    half = fit(2)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    resumed = fit(4, tmp_path / "run.ckpt")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_icons_without_categories_are_trained_beside_emoji_and_names_are_those_of_the_validated_styles(
    tmp_path: Path,
) -> None:
    """A file of icons with fewer columns joins the emoji; validation chooses among the names of the emoji alone."""
    table = pq.read_table(DATA).slice(0, 60)
    pq.write_table(table, tmp_path / "emoji.parquet")
    icons = table.select(["image", "keywords", "license"]).append_column("name", [["Zebra Crossing"] * 60])
    pq.write_table(icons.append_column("style", [["icon-set"] * 60]), tmp_path / "icons.parquet")

    def part(held_out: bool, *names: str) -> dict:
        files = [str(tmp_path / name) for name in names]
        images = {"target": "ldm.data.ParquetImages", "params": {"files": files, "size": 8}}
        return {"target": "ldm.data.HashSplit", "params": {"held_out": held_out, "images": images}}

    model = SmallCLIP(MODEL, PREPROCESS, warmup_steps=1)
    data = DataModule(16, part(False, "emoji.parquet", "icons.parquet"), part(True, "emoji.parquet"))
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        max_steps=2,
        val_check_interval=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    assert model._names == sorted(table["name"].to_pylist())
    assert {"val/recall@5", "val/style_accuracy", "val/colour_accuracy"} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["val/style_accuracy"] == 1.0  # there is but one style
    embedding = model.neutral_embedding(model.training_texts())
    article, zebra, unknown = (model.tokenizer.encode(word)[0] for word in ("a", "zebra", "parliament"))
    assert not torch.equal(embedding[zebra], embedding[article])
    assert torch.equal(embedding[unknown], embedding[article])
    assert (tmp_path / "open_clip" / "open_clip_model.safetensors").is_file()
