"""Plain latent diffusion models in the pipeline: unconditional ones, and those of classes and of texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image
from small_models import IDENTITY
from torchvision.transforms.functional import to_pil_image
from toy import plain_config, ship

import rdm
from ldm.config import read_config, write_config
from ldm.pictures import to_uint8
from ldm.run import write_class_names
from rdm.sampling import plain, ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save
from rdm.sampling.settings import Settings

NAMES = ("class0", "class1", "class2")
Load = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Returns a function that loads a tiny plain model with random weights; each is made once."""
    made: dict[str, Pipeline] = {}

    def get(reads: str | None = None, **params: Any) -> Pipeline:
        key = json.dumps([reads, params])
        if key not in made:
            folder = tmp_path_factory.mktemp("plain")
            model = ship(folder / "model", plain_config(folder, reads, **params))
            if reads == "classes":
                write_class_names(model, NAMES)
            made[key] = rdm.load(str(model))
        return made[key]

    return get


def test_an_unconditional_model_samples_what_the_model_itself_samples(load: Load) -> None:
    model = load()
    got = draw(ways.popular, model, 3, seed=5, steps=2, batch_size=3)
    assert model.is_plain and model.k == 0 and model.data.image_size == (16, 16)
    expected = model.plain.sample(None, (3, 8, 8), [5, 6, 7], steps=2)
    assert torch.equal(got.images, expected.clamp(-1, 1))
    assert got.settings.scale == 1.0 and got.copies is None


def test_a_class_is_asked_for_by_name_or_number_and_guided_by_the_null_class(load: Load) -> None:
    model = load("classes")
    got = draw(ways.classes, model, ["class1", "2"], steps=2, batch_size=2, scale=3.0)
    tokens = model.plain.cond_stage_model.embedding.weight[:, None].detach()
    expected = model.plain.sample(tokens[[1, 2]], (3, 8, 8), [0, 1], steps=2, scale=3.0, null=tokens[3:4])
    assert torch.equal(got.images, expected.clamp(-1, 1))
    unguided = draw(ways.classes, model, ["class1", "2"], steps=2, batch_size=2, scale=1.0)
    assert not torch.equal(got.images, unguided.images)
    assert ways.class_of(model, "2") == "class2"


def test_a_text_is_read_by_the_models_own_encoder(load: Load) -> None:
    model = load("texts")
    images = model(["a flag", "a dog"], steps=2, scale=2.0, batch_size=2)
    read = model.plain.cond_stage_model.encode
    context = torch.cat([read(["a flag"]), read(["a dog"])])
    expected = model.plain.sample(context, (3, 8, 8), [0, 1], steps=2, scale=2.0, null=read([""]))
    got = draw(ways.texts, model, ["a flag", "a dog"], steps=2, scale=2.0, batch_size=2)
    assert torch.equal(got.images, expected.clamp(-1, 1)) and len(images) == 2 and images[0].size == (16, 16)
    assert images[0].tobytes() != images[1].tobytes()


@pytest.mark.parametrize("reads", ["classes", "texts"])
def test_without_a_condition_the_null_condition_is_seen(load: Load, reads: str) -> None:
    model = load(reads)
    null = model.plain.null_context(torch.zeros(1, 1, 8))
    got = draw(ways.popular, model, 2, steps=2, batch_size=2)
    expected = model.plain.sample(null.expand(2, -1, -1), (3, 8, 8), [0, 1], steps=2)
    assert (got.images - expected.clamp(-1, 1)).abs().max() < 1e-4  # guided away from itself


def test_a_pipeline_is_called_with_what_its_model_reads(load: Load, loaded: Pipeline) -> None:
    for model, prompts, way, what in (
        (load(), None, ways.popular, 2),
        (load("classes"), ["class1", 2], ways.classes, ["class1", "class2"]),
        (load("texts"), ["a flag", "a dog"], ways.texts, ["a flag", "a dog"]),
        (load("texts"), None, ways.popular, 2),
        (loaded, None, ways.popular, 2),
    ):
        n = {"n": 2} if prompts is None else {}
        images = model(prompts, steps=2, seed=3, **n)
        expected = draw(way, model, what, seed=3, steps=2, copy_threshold=None).images
        assert [image.tobytes() for image in images] == [to_pil_image(to_uint8(each)).tobytes() for each in expected]
    assert len(load()(steps=1)) == 1
    for options, facts in (({"prompts": "a", "n": 2}, "n=2 with prompts"), ({"negative": "a"}, "negative without")):
        with pytest.raises(ValueError, match=facts):
            load("texts")(**options)


def test_images_do_not_depend_on_the_batch(load: Load) -> None:
    model = load("classes")
    alone, together = (draw(ways.classes, model, NAMES, steps=2, batch_size=size).images for size in (1, 3))
    assert (alone - together).abs().max() < 1e-4


@pytest.mark.parametrize("reads", [None, "classes", "texts"])
@pytest.mark.parametrize("options", [{"strength": 0.5}, {"mask": "mask.png"}, {"invert": True}])
def test_pictures_are_edited(load: Load, reads: str | None, options: dict[str, Any], tmp_path: Path) -> None:
    model = load(reads)
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    picture.save(tmp_path / "a.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    if "mask" in options:
        options = {"mask": tmp_path / "mask.png"}
    what = {None: {}, "classes": {"class_name": "class1"}, "texts": {"prompt": "a flag"}}[reads]
    samples = draw(edit, model, tmp_path / "a.png", 2, steps=4, **what, **options)
    given = samples.request.canvas.picture
    assert samples.images.shape == (2, 3, 16, 16) and not torch.equal(samples.images[:1], given)
    if "mask" in options:
        assert torch.equal(samples.images[..., 8:], given[..., 8:].expand(2, -1, -1, -1))
    file = Path(str(save(samples, model, tmp_path / "out", "edit"))).with_name("edit-001.png")
    again, _ = make_again(read_record(file))
    assert torch.equal(again.images[0], samples.images[1])


def test_sizes_and_ranges_are_those_of_the_training_pictures(load: Load, tmp_path: Path) -> None:
    config = read_config([load().path.parent / "config.yaml"])
    config["data"]["params"]["train"]["params"] |= {"size": [16, 32], "value_range": [-100, 300]}
    write_config(tmp_path / "a.yaml", config)
    model = rdm.load(str(load().path), config=str(tmp_path / "a.yaml"))
    assert draw(ways.popular, model, 1, steps=1).images.shape == (1, 3, 16, 32)
    values = np.linspace(-100, 300, 15 * 17, dtype=np.float32).reshape(15, 17)
    Image.fromarray(values).save(tmp_path / "a.tif")
    edited = draw(edit, model, tmp_path / "a.tif", strength=0.5, steps=2)
    assert edited.images.shape == (1, 3, 15, 17)  # padded within, and cut back
    given = edited.request.canvas.picture[0, 0]
    torch.testing.assert_close(given, torch.from_numpy(values / 200 - 0.5), atol=0.005, rtol=0)


@pytest.mark.parametrize(
    ("reads", "way", "what", "entries"),
    [
        (None, ways.popular, 2, {"query": "unconditional"}),
        ("classes", ways.classes, ["class2", "class0"], {"query": "class0", "given": 0}),
        ("texts", ways.texts, ["a dog", "a flag"], {"query": "a flag", "prompt": "a flag", "given": "a flag"}),
        ("classes", ways.popular, 2, {"query": "unconditional", "given": None}),
    ],
)
def test_a_record_makes_the_image_again(
    load: Load, reads: str | None, way: Any, what: Any, entries: dict[str, Any], tmp_path: Path
) -> None:
    model = load(reads)
    samples = draw(way, model, what, steps=2)
    grid = save(samples, model, tmp_path, "a")
    assert Image.open(grid).size == (2 + 18, 2 + 2 * 18)
    record = read_record(tmp_path / "a-001.png")
    assert {key: record.get(key) for key in entries} == entries
    assert record["tokens"] == "condition" and record["neighbours"] == [] and "database" not in record
    again, pipeline = make_again(record)
    assert torch.equal(again.images[0], samples.images[1])
    save(again, pipeline, tmp_path / "again", "a")
    assert (tmp_path / "again/a-000.png").read_bytes() == (tmp_path / "a-001.png").read_bytes()


def test_a_weaker_model_reads_with_its_own_encoder(load: Load) -> None:
    model, weaker = load("classes"), load("classes", seed=1)
    settings = {"steps": 2, "scale": 1.0, "weaker": str(weaker.path), "weaker_scale": 3.0}
    got = draw(ways.classes, model, ["class1"], **settings)
    own, theirs = (each.plain.condition_of([1]) for each in (model, weaker))
    options = {"steps": 2, "weaker": weaker.plain, "weaker_scale": 3.0, "weaker_context": theirs}
    assert torch.equal(got.images, model.plain.sample(own, (3, 8, 8), [0], **options).clamp(-1, 1))
    with pytest.raises(ValueError, match="reads None.*classes"):
        draw(ways.classes, model, ["class1"], steps=2, weaker=str(load().path))


def test_a_config_without_data_tells_the_size_by_its_network(load: Load, tmp_path: Path) -> None:
    config = read_config([load().path.parent / "config.yaml"])
    write_config(tmp_path / "a.yaml", {"model": config["model"]})
    assert rdm.load(str(load().path), config=str(tmp_path / "a.yaml")).data.image_size == (16, 16)


def test_a_model_of_pixels_has_the_identity_as_its_first_stage(load: Load) -> None:
    model = load(first_stage_config=IDENTITY)
    got = draw(ways.popular, model, 1, steps=2)
    assert torch.equal(got.images, model.plain.sample(None, (3, 16, 16), [0], steps=2).clamp(-1, 1))


def test_the_data_of_a_plain_model_need_not_be_there(load: Load, tmp_path: Path) -> None:
    config = read_config([load().path.parent / "config.yaml"])
    config["data"]["params"]["train"] = {"target": "ldm.data.nowhere.Train", "params": {"config": {"size": 32}}}
    write_config(tmp_path / "a.yaml", config)
    assert rdm.load(str(load().path), config=str(tmp_path / "a.yaml")).data.image_size == (32, 32)


@pytest.mark.parametrize(
    ("reads", "ask", "facts"),
    [
        (None, lambda model: ways.texts(model, ["a flag"]), "is unconditional.*sample.py"),
        (None, lambda model: ways.classes(model, ["class1"]), "is unconditional.*sample.py"),
        ("classes", lambda model: ways.texts(model, ["a flag"]), "is class-conditional.*class2img.py"),
        ("texts", lambda model: ways.classes(model, ["class1"]), "is conditioned on texts.*txt2img.py"),
        ("classes", lambda model: ways.classes(model, ["clas1"]), "no class 'clas1'.*'class1'"),
        ("classes", lambda model: ways.classes(model, ["3"]), "no class '3'.*0 to 2.*class0"),
        ("classes", lambda model: ways.classes(model, ["class1"], k=3), "k=3.*without a database"),
        ("classes", lambda model: ways.classes(model, ["class1"], by="label"), "by='label'"),
        ("classes", lambda model: ways.classes(model, ["class1"], pool=5), "pool=5"),
        ("classes", lambda model: model(n=0), "n=0"),
        ("texts", lambda model: ways.texts(model, ["a"], tokens="both"), "tokens='both'"),
        ("texts", lambda model: ways.texts(model, ["a"], negative="b"), "negative='b'"),
        (None, lambda model: ways.popular(model, 1, weighted=True), "weighted=True"),
        (None, lambda model: ways.rows(model, [1], 1), "no database"),
        (None, lambda model: ways.between(model, "a", "b", 2), "no database"),
        (None, lambda model: draw(ways.popular, model, 1, scale=3.0), "scale=3.0.*no null condition"),
        (None, lambda model: draw(ways.popular, model, 1, best_of=2), "best_of=2"),
        (None, lambda model: draw(ways.popular, model, 1, reject_copies=2), "reject_copies=2"),
        (None, lambda model: draw(ways.popular, model, 1, top_k=2), "top_k=2"),
        (None, lambda model: model("a flag"), "is unconditional"),
        (None, lambda model: rdm.load(str(model.path), database="x"), "database.*plain"),
        (None, lambda model: rdm.load(str(model.path), only=["a=b"]), "only.*plain"),
        (None, lambda model: rdm.load(str(model.path), same_outline=0.9), "same_outline.*plain"),
    ],
)
def test_what_a_plain_model_cannot_do_is_said(load: Load, reads: str | None, ask: Any, facts: str) -> None:
    with pytest.raises(ValueError, match=facts):
        ask(load(reads))


def test_without_a_null_class_there_is_no_guidance(load: Load) -> None:
    model = load("classes", p_uncond=0.0)
    assert draw(ways.classes, model, ["class1"], steps=1).settings.scale == 1.0
    assert plain.class_count(model) == 4 and ways.class_of(model, "3") == "3"
    with pytest.raises(ValueError, match="scale=3.0.*p_uncond"):
        draw(ways.classes, model, ["class1"], scale=3.0)
    with pytest.raises(ValueError, match="no null condition.*class2img.py"):
        ways.popular(model, 1)


def test_another_condition_is_named(load: Load, tmp_path: Path) -> None:
    config = read_config([load("texts").path.parent / "config.yaml"])
    stage = {"target": "torch.nn.Linear", "params": {"in_features": 8, "out_features": 8}}
    config["model"]["params"] |= {"cond_stage_config": stage, "cond_stage_key": "sound", "p_uncond": 0.0}
    write_config(tmp_path / "config.yaml", config)
    torch.manual_seed(0)
    ship(tmp_path, config)
    with pytest.raises(ValueError, match="'sound' by a Linear.*classes, texts or nothing"):
        draw(ways.popular, rdm.load(str(tmp_path)), 1)


def test_a_part_of_a_name_must_be_the_part_of_one_class(load: Load, tmp_path: Path) -> None:
    model = load("classes")
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((model.path.parent / name).read_bytes())
    write_class_names(tmp_path, ["animal/bird", "animal/cat", "food/fruit"])
    other = rdm.load(str(tmp_path))
    assert plain.class_number(other, "fruit") == 2 and plain.class_number(other, "animal/cat") == 1
    with pytest.raises(ValueError, match="'animal'.*animal/bird, animal/cat"):
        plain.class_number(other, "animal")


def test_retrieval_models_refuse_what_only_plain_ones_take(loaded: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="class_name='flag'"):
        edit(loaded, tmp_path / "a.png", class_name="flag", strength=0.5)
    with pytest.raises(ValueError, match="expected a plain latent diffusion model"):
        _ = loaded.plain


def test_settings_of_a_plain_model_have_no_copy_check(load: Load) -> None:
    assert plain.fitting(load("classes"), Settings()).copy_threshold is None
