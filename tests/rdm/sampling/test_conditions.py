"""Sampling with reference latents: scales, noise, other ways to ask, records, and databases without pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image
from toy import references_config, ship

from rdm.loading import Loaded
from rdm.models.references import References
from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling import ways
from rdm.sampling.conditions import condition_of, reference_latents
from rdm.sampling.edit import edit
from rdm.sampling.neighbours import retrieved_rows
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save

FAST: dict[str, Any] = {"k": 2, "seed": 3, "steps": 4, "copy_threshold": None}


def images(loaded: Loaded, way: Any = ways.texts, what: Any = ("white flag",), **options: Any) -> torch.Tensor:
    return draw(way, loaded, what, **FAST | options).images


def test_references_are_the_latents_of_the_rows_pictures(with_references: Loaded) -> None:
    rows, model = np.array([[7, 2], [2, 30]]), with_references.diffusion
    latents = reference_latents(with_references, rows, 16, 16)
    shown = pictures(with_references.retriever.database, rows, 16)
    expected = model.to_latent(shown.flatten(0, 1)).view(2, 2, 3, 8, 8)
    torch.testing.assert_close(latents, expected)
    assert reference_latents(with_references, rows, 16, 32).shape == (2, 2, 3, 8, 16)
    retrieved = retrieved_rows(with_references, rows, np.ones(rows.shape, np.float32))
    assert torch.equal(condition_of(with_references, retrieved).image[:, :6], latents.flatten(1, 2))


def test_they_have_a_guidance_scale_of_their_own(with_references: Loaded) -> None:
    plain = images(with_references, scale=2.0)
    assert torch.equal(images(with_references, scale=2.0, reference_scale=5.0), plain)
    close: dict[str, float] = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(
        images(with_references, scale=1.0), images(with_references, scale=1.0, reference_scale=1.0), **close
    )
    for scale in (0, 1.0, 2.0, 4.0):
        assert (images(with_references, scale=2.0, reference_scale=scale) - plain).abs().max() > 1e-3
    both = {"tokens": "both", "scale": 2.0}
    three = images(with_references, text_scale=3.0, reference_scale=1.5, **both)
    for less in ({"text_scale": 3.0}, {"reference_scale": 1.5}):
        assert (images(with_references, **both, **less) - three).abs().max() > 1e-3


def test_pictures_that_do_not_agree_with_the_first_are_not_shown(
    with_references: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = with_references.retriever.database
    rows = np.array([[7, 2, 30, 11], [2, 30, 7, 5]])
    outlines = Outlines(database, 1.0)
    known = np.array([[float(outlines[line[0]] @ outlines[row]) for row in line] for line in rows])
    least = float(np.sort(known[:, 1:].ravel())[3]) - 1e-3  # half of the others agree
    every = reference_latents(with_references, rows, 16, 16)
    some = reference_latents(with_references, rows, 16, 16, least=least)
    agree = torch.from_numpy(known >= least)
    assert agree[:, 0].all() and 0 < int(agree[:, 1:].sum()) < 6
    assert torch.equal(some, every * agree[:, :, None, None, None]) and every.abs().amax((2, 3, 4)).min() > 0
    # A number of the user comes first, then that of the model's config; chosen neighbours are all shown.
    three = {"k": 3, "scale": 2.0}
    alone, all_shown = (images(with_references, **three, reference_agreement=each) for each in (1.0, -1.0))
    assert (alone - all_shown).abs().max() > 1e-3 and torch.equal(images(with_references, **three), all_shown)
    rows_way = {name: value for name, value in FAST.items() if name != "k"}
    chosen = draw(ways.rows, with_references, [7, 2, 30], 1, **rows_way).images
    monkeypatch.setattr(with_references.model, "references", References(agreement=1.0))
    assert torch.equal(images(with_references, **three), alone)
    assert torch.equal(images(with_references, **three, reference_agreement=-1.0), all_shown)
    assert torch.equal(draw(ways.rows, with_references, [7, 2, 30], 1, **rows_way).images, chosen)
    assert draw(ways.texts, with_references, ["white flag"], **FAST).settings.reference_agreement == 1.0
    found = retrieved_rows(with_references, rows, np.ones(rows.shape, np.float32))
    inverted = condition_of(with_references, found).image[:, :12].unflatten(1, (4, 3))  # type: ignore[union-attr]
    assert torch.equal(inverted[:, 0], every[:, 0]) and not inverted[:, 1:].any()
    unseen = images(with_references, reference_scale=0)
    with pytest.raises(ValueError, match="got reference_agreement=0.5 without the neighbours' pictures"):
        images(with_references, reference_scale=0, reference_agreement=0.5)
    assert not torch.equal(unseen, all_shown)
    with pytest.raises(ValueError, match="references.agreement: got 1.5, expected a correlation"):
        References(agreement=1.5)


def test_the_text_alone_sees_no_pictures(with_references: Loaded) -> None:
    alone = images(with_references, tokens="text")
    assert torch.equal(images(with_references, tokens="text", reference_noise=0.8), alone)
    assert torch.equal(images(with_references, tokens="text", reference_scale=0), alone)
    assert torch.equal(images(with_references, tokens="text", reference_scale=3.0), alone)


def test_noise_depends_on_the_images_own_seed(with_references: Loaded) -> None:
    prompts, options = ["white flag", "pirate flag"], {"reference_noise": 0.6}
    both = images(with_references, what=prompts, **options)
    second = images(with_references, what=prompts[1:], **options, seed=4)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(both, images(with_references, what=prompts), atol=1e-3)


@pytest.mark.parametrize(
    ("way", "what", "options"),
    [
        (ways.rows, [7, 2], {"n": 2, "k": None}),
        (ways.classes, ["white flag"], {}),
        (ways.popular, 2, {}),
        (ways.texts, ["white flag"], {"negative": "red", "height": 32, "width": 16}),
        (ways.texts, ["white flag"], {"tokens": "both", "text_scale": 3.0, "best_of": 2, "rescale": 0.5}),
    ],
)
def test_every_way_to_ask_works_and_its_record_makes_it_again(
    way: Any, what: Any, options: dict[str, Any], with_references: Pipeline, tmp_path: Path
) -> None:
    given = {key: value for key, value in {**FAST, **options}.items() if value is not None}
    wanted = {"reference_scale": 1.5, "reference_noise": 0.3, "copy_threshold": 0.999}
    n = [given.pop("n")] if "n" in given else []
    samples = draw(way, with_references, what, *n, **given | wanted)
    save(samples, with_references, tmp_path, "a")
    record = read_record(tmp_path / "a-000.png")
    assert record["settings"]["reference_scale"] == 1.5 and record["settings"]["reference_noise"] == 0.3
    again, _ = make_again(record)
    assert torch.equal(again.images[0], samples.images[0])


def test_edits_see_the_neighbours_pictures_and_an_inversion_comes_back(
    with_references: Pipeline, tmp_path: Path
) -> None:
    Image.fromarray(with_references.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    options = {**FAST, "sampler": "ddim", "steps": 20}
    inverted = draw(edit, with_references, tmp_path / "a.png", invert=True, **options)
    canvas = inverted.request.canvas
    assert canvas is not None and canvas.context.image[:, :6].abs().amax() > 0
    save(inverted, with_references, tmp_path, "b")
    assert torch.equal(make_again(read_record(tmp_path / "b-000.png"))[0].images, inverted.images)
    near = draw(edit, with_references, tmp_path / "a.png", prompt="flag", strength=0.5, **options)
    far = draw(edit, with_references, tmp_path / "a.png", prompt="flag", strength=0.5, reference_noise=1.0, **options)
    assert not torch.allclose(near.images, far.images, atol=1e-3)


def test_a_model_without_references_refuses_their_options_and_takes_part_as_the_weaker_one(
    loaded: Loaded, with_references: Loaded
) -> None:
    for option in ({"reference_scale": 2.0}, {"reference_noise": 0.5}):
        with pytest.raises(ValueError, match="does not see the neighbours' pictures"):
            images(loaded, **option)
    guided = images(with_references, weaker=str(loaded.path), weaker_scale=1.5)
    assert not torch.allclose(guided, images(with_references), atol=1e-3)
    with pytest.raises(ValueError, match="sees reference latents, which .* does not"):
        images(loaded, weaker=str(with_references.path))


def test_a_database_without_its_pictures(tmp_path: Path) -> None:
    config = references_config(tmp_path)
    source = tmp_path / "emoji"
    source.mkdir()
    for file in config["data"]["params"]["database"]["source"]["params"]["files"]:
        shutil.copy(file, source)
    inside = {**config["data"]["params"]["database"]["source"]["params"], "files": str(source)}
    config["data"]["params"]["database"]["source"]["params"] = inside
    model = Pipeline.load(str(ship(tmp_path / "model", config)))
    seen = images(model, reference_scale=0)
    source.rename(tmp_path / "gone")
    model.retriever.database = RetrievalDatabase.open(model.retriever.database.path)  # it held its source open
    with pytest.raises(FileNotFoundError, match="reference_scale to 0"):
        images(model)
    assert torch.equal(images(model, reference_scale=0), seen)


def test_a_record_of_a_model_without_references_knows_nothing_of_them(loaded: Pipeline, tmp_path: Path) -> None:
    samples = draw(ways.texts, loaded, ["white flag"], **FAST)
    save(samples, loaded, tmp_path, "a")
    record = read_record(tmp_path / "a-000.png")
    for name in ("reference_scale", "reference_noise"):
        del record["settings"][name]  # as earlier versions wrote it
    assert torch.equal(make_again(record)[0].images, samples.images)
