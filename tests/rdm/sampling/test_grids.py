"""Sampling with grids of the neighbours' tokens: every way to ask, edits, records, other databases, and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from pictures import QUIET, write_pictures
from PIL import Image
from toy import grid_config, rarm_config, ship, with_grid

from ldm.checkpoint import read_weights, write_weights
from ldm.config import read_config, write_config
from rdm.loading import Loaded, load
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.pictures import grid_tokens
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling import ways
from rdm.sampling.conditions import Conditions, condition_of
from rdm.sampling.edit import edit
from rdm.sampling.neighbours import retrieved_rows
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings

FAST: dict[str, Any] = {"k": 2, "seed": 3, "steps": 4, "copy_threshold": None}
ROWS = {key: value for key, value in FAST.items() if key != "k"}


def images(loaded: Loaded, way: Any = ways.texts, what: Any = ("white flag",), **options: Any) -> torch.Tensor:
    return draw(way, loaded, what, **FAST | options).images


def tokens_of(loaded: Loaded, request: Request) -> torch.Tensor:
    return Conditions(loaded, request, Settings(), (16, 16), (3, 8, 8)).tokens


def test_a_condition_is_the_vectors_and_the_tokens_of_the_shown_rows(with_grids: Loaded) -> None:
    model, retriever, rows = with_grids.model, with_grids.retriever, np.array([[7, 2], [2, 30]])
    retrieved = retrieved_rows(with_grids, rows, np.ones(rows.shape, np.float32))
    grids = grid_tokens(retriever.database, rows, retriever.embedder, 2)  # type: ignore[arg-type]
    pooled = model.conditioner(retrieved.embeddings)
    assert model.grid_tokens is not None
    assert torch.equal(condition_of(with_grids, retrieved), model.grid_tokens(pooled, grids))  # type: ignore[arg-type]
    one = condition_of(with_grids, retrieved_rows(with_grids, rows[1:, :1], np.ones((1, 1), np.float32)))
    assert one.shape == (1, 5, 8)  # type: ignore[union-attr]


def test_the_query_has_its_vector_only_and_alone_no_tokens(with_grids: Loaded) -> None:
    requests = {
        tokens: ways.texts(with_grids, ["flag"], k=3, tokens=tokens) for tokens in ("neighbours", "both", "text")
    }
    found = {tokens: tokens_of(with_grids, request) for tokens, request in requests.items()}
    assert {tokens: context.shape[1] for tokens, context in found.items()} == {"neighbours": 15, "both": 16, "text": 1}
    assert torch.equal(found["both"], torch.cat([found["text"], found["neighbours"]], 1))
    for tokens in requests:
        assert images(with_grids, tokens=tokens, scale=2.0).isfinite().all()
    plain = images(with_grids, tokens="both", scale=2.0)
    assert not torch.allclose(images(with_grids, tokens="both", scale=2.0, text_scale=5.0), plain, atol=1e-4)
    torch.testing.assert_close(images(with_grids, tokens="both", scale=0.0), images(with_grids, scale=0.0, k=3))


def test_images_depend_on_the_tokens(with_grids: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images(with_grids, scale=9.0)  # codes of the first stage hide small differences
    monkeypatch.setattr(with_grids.retriever.embedder, "tokens", lambda given, _: torch.ones(len(given), 4, 16))
    assert (images(with_grids, scale=9.0) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("way", "what", "options"),
    [
        (ways.rows, [7, 2], {"n": 2, "k": None}),
        (ways.classes, ["white flag"], {}),
        (ways.popular, 2, {}),
        (ways.texts, ["white flag"], {"negative": "red", "height": 32, "width": 16}),
        (ways.texts, ["white flag"], {"tokens": "both", "text_scale": 3.0, "best_of": 2, "rescale": 0.5, "scale": 2.0}),
    ],
)
def test_every_way_to_ask_works_and_its_record_makes_it_again(
    way: Any, what: Any, options: dict[str, Any], with_grids: Pipeline, tmp_path: Path
) -> None:
    given = {key: value for key, value in {**FAST, **options}.items() if value is not None}
    n = [given.pop("n")] if "n" in given else []
    samples = draw(way, with_grids, what, *n, **given)
    save(samples, with_grids, tmp_path, "a")
    again, _ = make_again(read_record(tmp_path / "a-000.png"))
    torch.testing.assert_close(again.images[0], samples.images[0], atol=1e-4, rtol=1e-4)  # the batch may differ


def test_edits_work_and_an_inversion_comes_back(with_grids: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(with_grids.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    options = {**FAST, "sampler": "ddim", "steps": 10}
    inverted = draw(edit, with_grids, tmp_path / "a.png", invert=True, **options)
    canvas = inverted.request.canvas
    assert canvas is not None and canvas.context.shape == (1, 10, 8)
    save(inverted, with_grids, tmp_path, "b")
    assert torch.equal(make_again(read_record(tmp_path / "b-000.png"))[0].images, inverted.images)
    assert draw(edit, with_grids, tmp_path / "a.png", prompt="flag", strength=0.5, **options).images.isfinite().all()


def test_an_autoregressive_model_has_grids_too(tmp_path: Path) -> None:
    model = Pipeline.load(str(ship(tmp_path / "model", with_grid(rarm_config(tmp_path)))))
    options = {"k": 2, "seed": 3, "copy_threshold": None, "scale": 1.5}
    samples = draw(ways.texts, model, ["white flag"], tokens="both", text_scale=2.0, **options)
    assert samples.images.shape == (1, 3, 16, 16)
    save(samples, model, tmp_path, "a")
    assert torch.equal(make_again(read_record(tmp_path / "a-000.png"))[0].images, samples.images)


def test_a_weaker_model_gets_its_own_context(loaded: Loaded, with_grids: Loaded, tmp_path: Path) -> None:
    """With the scale 0 of autoguidance, images are those of the weaker model."""
    torch.manual_seed(2)
    state = read_weights(with_grids.path)
    projection = "model.grid_tokens.project.weight"
    write_weights(tmp_path / "model.safetensors", state | {projection: torch.randn_like(state[projection])})
    shutil.copy(with_grids.path.parent / "config.yaml", tmp_path)
    other = load(str(tmp_path))
    for model, weaker in ((loaded, with_grids), (with_grids, loaded), (with_grids, other)):
        for way, what, options in ((ways.texts, ["white flag", "flag"], {"tokens": "both"}), (ways.popular, 3, {})):
            given = {**FAST, **options, "sampler": "ddim", "scale": 1.0}
            alone = draw(way, weaker, what, **given).images
            guided = draw(way, model, what, **given, weaker=str(weaker.path), weaker_scale=0.0).images
            torch.testing.assert_close(guided, alone, atol=1e-4, rtol=1e-4)


def test_another_database_and_one_without_its_pictures(tmp_path: Path) -> None:
    config = grid_config(tmp_path)
    source = tmp_path / "emoji"
    source.mkdir()
    for file in config["data"]["params"]["database"]["source"]["params"]["files"]:
        shutil.copy(file, source)
    inside = {**config["data"]["params"]["database"]["source"]["params"], "files": str(source)}
    config["data"]["params"]["database"]["source"]["params"] = inside
    model = Pipeline.load(str(ship(tmp_path / "model", config)))
    embedder = model.retriever.embedder
    build_database(tmp_path / "other", write_pictures(tmp_path / "pictures", 12), embedder, **QUIET)
    swapped = load(str(model.path), str(tmp_path / "other"))
    requests = [draw(ways.rows, each, [7, 2], 1, **ROWS).request for each in (model, swapped)]
    own, other = (tokens_of(each, request) for each, request in zip((model, swapped), requests, strict=True))
    assert own.shape == other.shape and not torch.isclose(own, other).any(2).all(1).any()
    assert torch.equal(other, condition_of(swapped, requests[1].retrieved))  # type: ignore[arg-type]
    source.rename(tmp_path / "gone")
    model.retriever.database = RetrievalDatabase.open(model.retriever.database.path)  # it held its source open
    with pytest.raises(
        (ValueError, FileNotFoundError), match="a model with a grid of tokens needs the pictures"
    ) as raised:
        images(model)
    assert "\n" not in str(raised.value)
    assert images(model, tokens="text").isfinite().all()


def test_weights_of_the_other_kind_of_context_do_not_load(loaded: Loaded, with_grids: Loaded, tmp_path: Path) -> None:
    for number, (weights, other) in enumerate(((loaded, with_grids), (with_grids, loaded))):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(weights.path, folder)
        write_config(folder / "config.yaml", read_config([other.path.parent / "config.yaml"]))
        with pytest.raises(ValueError, match=r"does not fit .*: 4 (missing|unexpected): model\.grid_tokens") as raised:
            load(str(folder))
        assert "\n" not in str(raised.value)
