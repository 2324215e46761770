"""The sampling settings: which values they accept and refuse, and that each one has an effect on its own call only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import draw
from PIL import Image
from toy import rarm_config, ship

import rdm
from ldm.checkpoint import read_weights, write_weights
from ldm.models.diffusion import samplers, schedule
from ldm.models.diffusion.editing import Edit
from rdm.loading import Loaded
from rdm.retrieval.queries import text_queries
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import save
from rdm.sampling.settings import AUTOREGRESSION, CONDITIONS, DIFFUSERS, DIFFUSION, OPTIONS, OURS, Settings
from rdm.sampling.values import REPEATS, SAMPLERS, SPACINGS, STOCHASTIC

PROMPT = "white flag"
# A value of each setting that is not its default, and with it others that it needs to show.
CHANGED: dict[str, dict[str, Any]] = {
    "height": {"height": 32},
    "width": {"width": 32},
    "scale": {"scale": 3.0},
    "text_scale": {"text_scale": 5.0, "tokens": "both"},
    "reference_scale": {"reference_scale": 3.0},
    "reference_noise": {"reference_noise": 0.8},
    "reference_agreement": {"reference_agreement": 0.95},
    "rescale": {"rescale": 1.0, "scale": 9.0},
    "interval": {"interval": (300, 600)},
    "weaker": {"weaker": "WEAKER"},
    "weaker_scale": {"weaker_scale": 4.0, "weaker": "WEAKER"},
    "sampler": {"sampler": "heun"},
    "steps": {"steps": 2},
    "eta": {"eta": 0.7, "sampler": "ddim"},
    "spacing": {"spacing": "trailing"},
    "temperature": {"temperature": 0.2},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.2},
    "best_of": {"best_of": 4},
    "retrieve_below": {"retrieve_below": -1.0},
    "copy_threshold": {"copy_threshold": 1.5},
    "tile": {"tile": 8},
    "reject_copies": {"reject_copies": 2, "copy_threshold": -1.0},
}
# Settings that change how an image is computed, and of the image no more than its last bits.
NEARLY = {"batch_size": 3, "precision": "bf16", "compile": "eager"}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Returns a tiny autoregressive model with random weights and a database of 40 flags."""
    folder = tmp_path_factory.mktemp("autoregressive")
    return rdm.load(str(ship(folder / "model", rarm_config(folder))))


@pytest.fixture(scope="module")
def weaker(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the path of a copy of the tiny diffusion model with smaller weights."""
    folder = tmp_path_factory.mktemp("weaker")
    weights = {name: 0.8 * value for name, value in read_weights(loaded.path).items()}
    write_weights(folder / "model.safetensors", weights)
    (folder / "config.yaml").write_text((loaded.path.parent / "config.yaml").read_text())
    return str(folder)


def state(loaded: Loaded) -> dict[str, Any]:
    """Returns everything in a model that a call could change: weights, modes and other attributes of all modules."""
    values = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in weights(loaded).items()}
    for name, module in loaded.model.named_modules():
        plain = {key: value for key, value in vars(module).items() if not isinstance(value, dict | torch.Tensor)}
        values |= {f"{name}.{key}": repr(value) for key, value in plain.items()}
    return values


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: value.contiguous().view(torch.uint8) if value.ndim else value[None] for name, value in
            loaded.model.state_dict().items()}  # fmt: skip


def test_every_setting_is_tried_below() -> None:
    """Those of a pipeline of diffusers alone are tried in tests/rdm/generators."""
    assert {*CHANGED, *NEARLY} == {name for name, known in OPTIONS.items() if known.kinds != (DIFFUSERS,)}


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_changes_what_is_made(
    name: str, loaded: Loaded, with_references: Loaded, transformer: Pipeline, weaker: str
) -> None:
    """The setting also leaves the model unchanged, and the record stores its value."""
    kind = OPTIONS[name].group
    model = transformer if kind == AUTOREGRESSION else with_references if name in CONDITIONS else loaded
    options = {key: weaker if value == "WEAKER" else value for key, value in CHANGED[name].items()}
    common = {"k": 2, "seed": 1, "steps": 4} if kind != AUTOREGRESSION else {"k": 2, "seed": 1}
    before = state(model)
    changed = draw(ways.texts, model, [PROMPT], **common | options)
    assert state(model) == before
    without = {key: value for key, value in options.items() if key != name}
    plain = draw(ways.texts, model, [PROMPT], **common | without)
    told, untold = (samples.settings.record(model.model.kind) for samples in (changed, plain))
    assert told[name] != untold[name] and {k: v for k, v in told.items() if k not in options} == {
        k: v for k, v in untold.items() if k not in options
    }
    if name == "copy_threshold":
        assert plain.copies[0].is_copy and not changed.copies[0].is_copy
    else:
        assert changed.images.shape != plain.images.shape or not torch.equal(changed.images, plain.images)


@pytest.mark.parametrize("name", NEARLY)
def test_a_setting_of_the_computation_changes_little_and_does_not_last(name: str, loaded: Loaded) -> None:
    prompts, common = [PROMPT, "pirate flag"], {"k": 2, "seed": 1, "steps": 3}
    plain, before = draw(ways.texts, loaded, prompts, **common), state(loaded)
    changed = draw(ways.texts, loaded, prompts, **common, **{name: NEARLY[name]})
    assert changed.settings.record(DIFFUSION)[name] == NEARLY[name] != plain.settings.record(DIFFUSION)[name]
    assert state(loaded) == before
    assert (changed.images - plain.images).abs().mean() < 0.2
    assert torch.equal(draw(ways.texts, loaded, prompts, **common).images, plain.images)


def test_a_compiled_network_is_compiled_once(loaded: Loaded) -> None:
    options = {"k": 2, "steps": 2, "compile": "eager"}
    draw(ways.texts, loaded, [PROMPT], **options)
    calls = dict(loaded.compiled)
    draw(ways.texts, loaded, [PROMPT], **options)
    assert len(calls) == 2 and loaded.compiled == calls
    assert loaded.model.model.diffusion_model._compiled_call_impl is None


def test_a_weaker_model_is_led_away_from_by_default(loaded: Pipeline, weaker: str) -> None:
    """The default scale of autoguidance is not 1, as 1 has no effect; this holds in Python and the scripts."""
    plain, led = (loaded(PROMPT, steps=2, **options)[0] for options in ({}, {"weaker": weaker}))
    assert plain.tobytes() != led.tobytes()


@pytest.mark.parametrize("tokens", ["text", "both"])
def test_the_model_sees_the_sentence_of_a_class(loaded: Loaded, tokens: str) -> None:
    """It is the sentence that neighbours were looked up with. The label of the image is the name of the class."""
    samples = draw(ways.classes, loaded, ["flags/flag"], k=2, pool=2, tokens=tokens, steps=1)
    assert samples.request.prompts == ["An image of a flag."] and samples.request.labels == ["flags/flag"]
    query = text_queries(loaded.retriever.embedder, ["An image of a flag."])
    assert torch.equal(samples.request.query_tokens, query)
    context = samples.request.context(loaded.model.conditioner)
    assert torch.allclose(context[:, 0], loaded.model.conditioner(query[:, None])[:, 0])


def test_nothing_is_embedded_or_read_twice(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, opened = [], []
    embed, read = loaded.retriever.embedder.texts, Path.read_bytes
    monkeypatch.setattr(loaded.retriever.embedder, "texts", lambda words: texts.append(words) or embed(words))
    draw(ways.texts, loaded, [PROMPT], k=2, steps=1, tokens="both")
    assert texts == [[PROMPT]]
    Image.fromarray(loaded.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read(path))
    draw(edit, loaded, tmp_path / "a.png", strength=0.5, k=2, steps=2)
    assert opened == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"stpes": 3}, "'stpes'.*'steps'"),
        ({"steps": 0}, "steps=0.*at least 1"),
        ({"steps": "3"}, "steps='3'"),
        ({"steps": True}, "steps=True"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"spacing": None}, "spacing=None"),
        ({"rescale": 1.5}, "rescale=1.5"),
        ({"interval": (1, 2, 3)}, "interval"),
        ({"precision": "16"}, "precision='16'.*32 or bf16"),
        ({"tile": "2 apples"}, "tile='2 apples'"),
        ({"best_of": 0}, "best_of=0"),
        ({"copy_threshold": None, "reject_copies": 2}, "reject_copies=2"),
        ({"best_of": True}, "best_of=True"),
        ({"best_of": 1.0}, "best_of=1.0"),
        ({"reject_copies": False}, "reject_copies=False"),
        ({"compile": 0}, "compile=0"),
        ({"sampler": 3}, "sampler=3"),
        ({"sampler": "dimm"}, "sampler='dimm'.*'ddim'"),
        ({"weaker": 5}, "weaker=5.*path"),
        ({"scale": torch.ones(2)}, "scale=.*finite number"),
        ({"interval": (800, 200)}, r"interval=\(800, 200\)"),
        ({"weaker_scale": 3.0}, "weaker_scale=3.0 without weaker"),
        ({"rescale": 0.5, "scale": 1.0}, "rescale=0.5 without guidance"),
        ({"temperature": 0, "top_p": 0.5}, "top_p=0.5"),
    ],
)
def test_values_that_make_no_image_are_refused(options: dict[str, Any], facts: str) -> None:
    with pytest.raises(ValueError, match=facts):
        Settings.of(**options)


def test_names_are_those_of_the_samplers() -> None:
    assert tuple(samplers.SAMPLERS) == SAMPLERS and schedule.SPACINGS == SPACINGS
    zero, x = (lambda x, _: 0 * x), torch.zeros(1, 1, 2, 2)
    for name, sampler in samplers.SAMPLERS.items():
        try:
            sampler(zero, x, schedule.NoiseSchedule.linear(10), 2, eta=0.5, noise=torch.zeros_like)
        except ValueError:
            assert name not in STOCHASTIC
        else:
            assert name in STOCHASTIC


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"neighbours": 0}, "neighbours=0, expected a whole number of at least 1"),
        ({"neighbours": 2.0}, "neighbours=2.0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"image_weight": 0.7}, "image_weight=0.7 without image"),
        ({"negative_weight": 0.7}, "negative_weight=0.7 without negative"),
        ({"negative": ""}, "empty negative"),
        ({"negative": "red", "negative_weight": float("nan")}, "negative_weight=nan"),
        ({"tokens": "txt"}, "tokens 'txt'"),
        ({"text_scale": 3.0}, "text_scale=3.0 with tokens 'neighbours'"),
        ({"eta": 0.5}, "eta=0.5 with sampler=unipc"),
        ({"steps": 1001}, "steps=1001, expected 1 to 1000"),
        ({"interval": [1000, 2000]}, "interval=.*0 to 999"),
        ({"image": 3}, "3 as a picture"),
        ({"compile": "fast"}, "compile='fast'"),
    ],
)
def test_a_call_with_arguments_that_cannot_be_meant_is_refused(
    loaded: Pipeline, options: dict[str, Any], fact: str
) -> None:
    with pytest.raises(ValueError, match=fact):
        loaded(PROMPT, **options)


def test_requests_with_arguments_that_cannot_be_meant_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), "red")
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (ways.texts, ([PROMPT],), {"k": 0}, "k=0"),
        (ways.texts, ([],), {}, "empty prompt"),
        (ways.texts, ([3],), {}, "prompt=3"),
        (ways.between, ("a", "b", 2), {"k": 0}, "k=0"),
        (ways.image, (picture, 0), {}, "n=0"),
        (ways.rows, ([1], 0), {}, "n=0"),
        (ways.rows, ([], 1), {}, "no neighbour"),
        (ways.classes, (["flags"],), {"pool": 1, "k": 2}, "pool=1.*2"),
        (ways.classes, (["flags"],), {"pool": 3, "by": "label"}, "pool=3.*label"),
        (ways.classes, ([],), {}, "empty class"),
        (ways.popular, (2,), {"top_m": 1.5}, "top_m=1.5"),
        (ways.popular, (2,), {"top_m": True}, "top_m=True"),
        (ways.popular, (2,), {"weighted": 1}, "weighted=1"),
        (edit, (picture,), {"strength": "half"}, "strength='half'"),
        (edit, (picture,), {"strength": 0.5, "repeats": 2}, "repeats=2 without mask or outpaint"),
        (edit, (picture,), {"outpaint": (1, 2, 3)}, r"outpaint=\(1, 2, 3\)"),
        (edit, (picture,), {"strength": 0.5, "size": 0}, "size=0"),
        (edit, (picture, 0), {"strength": 0.5}, "n=0"),
        (edit, (picture,), {"invert": 1}, "invert=1"),
        (edit, (picture,), {"strength": 0.5, "k": 0}, "k=0"),
    ]
    for way, what, options, fact in cases:
        with pytest.raises(ValueError, match=fact):
            way(loaded, *what, **options)
    with pytest.raises(ValueError, match="scale=3.0.*inversion without a prompt"):
        draw(edit, loaded, picture, invert=True, scale=3.0, steps=2)
    with pytest.raises(ValueError, match="per_row=0"):
        save(draw(ways.texts, loaded, PROMPT, steps=1), loaded, tmp_path, "a", per_row=0)
    assert not list(tmp_path.iterdir())


def test_one_text_or_class_is_a_list_of_it(loaded: Loaded) -> None:
    assert list(ways.texts(loaded, PROMPT, k=2).labels) == [PROMPT]
    assert list(ways.classes(loaded, "flags/flag", k=2).labels) == ["flags/flag"]


def test_a_misspelt_option_is_refused_before_anything_is_looked_up(loaded: Pipeline) -> None:
    with pytest.raises(ValueError, match="'sclae'.*'scale'"):
        loaded(PROMPT, sclae=3.0)


def test_options_of_the_other_kind_are_refused(loaded: Loaded, transformer: Pipeline) -> None:
    with pytest.raises(ValueError, match="top_k=5.*autoregressive model.*diffusion model"):
        Settings(top_k=5).for_model(loaded.model)
    with pytest.raises(ValueError, match="sampler=plms.*diffusion model.*autoregressive model"):
        Settings(sampler="plms").for_model(transformer.model)
    common = {name for name, known in OPTIONS.items() if set(OURS) <= set(known.kinds)}
    records = [Settings().for_model(each.model).record(each.model.kind) for each in (loaded, transformer)]
    assert records[0].keys() & records[1].keys() == common and records[0]["sampler"] == "unipc"
    assert [record["batch_size"] for record in records] == [1, 4]


def test_a_record_gives_the_settings_back() -> None:
    settings = Settings(steps=3, interval=(1, 5), weaker="a", tile="2GB", copy_threshold=None)
    record = settings.record(DIFFUSION)
    assert record["interval"] == [1, 5] and Settings.from_record(record) == settings
    with pytest.raises(ValueError, match="'sharpness'"):
        Settings.from_record({**record, "sharpness": 2})


def test_repeats_have_the_default_of_the_sampler() -> None:
    assert Edit.repeats == REPEATS
