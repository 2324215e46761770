"""Sampling from a query to files, with a tiny model and database."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image

import rdm
from ldm.checkpoint import read_weights, write_weights
from ldm.pictures import save_png
from rdm.loading import Loaded, find_checkpoint, load
from rdm.retrieval.classes import resolve_class
from rdm.retrieval.queries import between, mix
from rdm.retrieval.retriever import Retrieved
from rdm.sampling import ways
from rdm.sampling.record import KEYWORD, make_again, read_record, save
from rdm.sampling.request import Request
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings


def test_load_builds_what_is_missing(loaded: Loaded) -> None:
    assert len(loaded.retriever.database) == 40
    assert loaded.latent_shape_of() == (3, 8, 8)
    assert not loaded.model.training
    assert len(loaded.data.table("train")) == 40


def test_what_no_image_needs_is_not_loaded(loaded: Loaded) -> None:
    fresh = load(str(loaded.path))
    draw(ways.rows, fresh, [3, 7], 1, seed=0, steps=1, copy_threshold=None)
    assert not {"embedder", "index"} & vars(fresh.retriever).keys()
    draw(ways.texts, fresh, ["white flag"], k=2, seed=0, steps=1, copy_threshold=None)
    assert {"embedder", "index"} <= vars(fresh.retriever).keys()


@pytest.mark.parametrize("size", [None, 4])
def test_an_image_depends_on_its_seed_and_query_alone(loaded: Loaded, size: int | None) -> None:
    """The image is bit-identical for any number and order of the other images of the request."""
    options = {"k": 2, "steps": 3, "scale": 2.0, "batch_size": size}
    together = draw(ways.texts, loaded, ["pirate flag", "white flag", "rainbow flag"], seed=5, **options)
    assert together.images.shape == (3, 3, 16, 16) and together.seeds == [5, 6, 7]
    assert torch.equal(together.images[2:], draw(ways.texts, loaded, ["rainbow flag"], seed=7, **options).images)
    turned = Retrieved(*(value[[2, 0, 1]] for value in vars(together.request.retrieved).values()))
    request = Request(turned, ["c", "a", "b"], [7, 5, 6])
    shuffled = sample(loaded, request, Settings(steps=3, scale=2.0, batch_size=size))
    assert torch.equal(shuffled.images, together.images[[2, 0, 1]])
    assert (together.images[0] - together.images[1]).abs().max() > 0.05


def test_bfloat16_makes_nearly_the_same_images(loaded: Loaded, tmp_path: Path) -> None:
    """The images depend on nothing but seed and query, as in float32, and are reproduced from their records."""
    prompts, options = ["pirate flag", "white flag"], {"k": 2, "steps": 10, "seed": 5}
    full = draw(ways.texts, loaded, prompts, **options).images
    half = draw(ways.texts, loaded, prompts, precision="bf16", **options)
    assert half.images.dtype == torch.float32
    assert 1e-5 < (half.images - full).abs().mean() < 0.1 * full.std()  # unrelated images differ by about 1 std
    single = draw(ways.texts, loaded, prompts[1:], precision="bf16", **options | {"seed": 6})
    assert torch.equal(half.images[1:], single.images)
    save(single, loaded, tmp_path, "half")
    assert torch.equal(make_again(read_record(tmp_path / "half-000.png"))[0].images, single.images)


@pytest.mark.parametrize(("tokens", "length"), [("neighbours", 2), ("both", 3), ("text", 1)])
def test_tokens_decide_the_context(loaded: Loaded, tokens: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    denoiser = loaded.model.denoiser
    monkeypatch.setattr(loaded.model, "denoiser", lambda c, *a, **more: seen.append(c) or denoiser(c, *a, **more))
    draw(ways.texts, loaded, ["white flag"], k=2, seed=0, steps=1, scale=1.0, tokens=tokens)
    query = loaded.retriever.embedder.texts(["white flag"])
    found = loaded.retriever(query, 2).embeddings[0]
    expected = {"neighbours": found, "both": torch.cat([query, found]), "text": query}[tokens]
    assert seen[0].shape == (1, length, 8)
    assert torch.allclose(seen[0][0], 3 * torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)


def test_the_text_has_a_scale_of_its_own(loaded: Loaded) -> None:
    def images(tokens: str = "both", **options: float) -> torch.Tensor:
        prompts = ["white flag", "pirate flag", "rainbow flag"]
        made = draw(
            ways.texts, loaded, prompts, k=2, seed=0, steps=2, tokens=tokens, scale=2.0, batch_size=2, **options
        )
        return made.images

    torch.testing.assert_close(images(text_scale=2.0), images())
    assert (images(text_scale=4.0) - images()).abs().max() > 0.01
    with pytest.raises(ValueError, match="text_scale=3.0 .*'neighbours'.*'both'"):
        images("neighbours", text_scale=3.0)


def test_is_led_away_from_a_weaker_model(loaded: Loaded, tmp_path: Path) -> None:
    def images(**options: object) -> torch.Tensor:
        return draw(ways.texts, loaded, ["white flag"], k=2, seed=0, steps=2, scale=1.0, **options).images

    torch.testing.assert_close(images(weaker=str(loaded.path), weaker_scale=3.0), images())  # it is itself
    weights = read_weights(loaded.path)
    write_weights(tmp_path / "model.safetensors", {name: 0.8 * value for name, value in weights.items()})
    (tmp_path / "config.yaml").write_text((loaded.path.parent / "config.yaml").read_text())
    assert (images(weaker=str(tmp_path), weaker_scale=3.0) - images()).abs().max() > 0.01


def test_a_loaded_model_is_called_with_texts(loaded: Loaded) -> None:
    images = loaded(["pirate flag", "white flag"], neighbours=3, seed=4, steps=2)
    expected = draw(ways.texts, loaded, ["pirate flag", "white flag"], k=3, seed=4, scale=2.0, steps=2).images
    for image, other in zip(images, expected, strict=True):
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        assert (pixels - (other + 1) * 127.5).abs().max() <= 0.5
    assert loaded("pirate flag", neighbours=3, seed=4, steps=2)[0].tobytes() == images[0].tobytes()
    assert rdm.load(str(loaded.path)).model.conditioner.k == 2


def test_classes_draw_neighbours_from_a_pool(loaded: Loaded) -> None:
    samples = draw(ways.classes, loaded, ["flags"] * 6, k=2, pool=5, seed=0, steps=1)
    pool = loaded.retriever(loaded.retriever.embedder.texts(["An image of a flags."]), 5).rows[0]
    assert set(samples.request.retrieved.rows.ravel()) <= set(pool)
    assert len({tuple(rows) for rows in samples.request.retrieved.rows.tolist()}) > 1


def test_a_class_found_by_label_depends_on_the_seed_of_its_image_alone(loaded: Loaded) -> None:
    names = ["flags/flag", "flag", "flags"]
    samples = draw(ways.classes, loaded, names, k=3, by="label", seed=3, steps=4)
    alone = draw(ways.classes, loaded, ["flag"], k=3, by="label", seed=4, steps=4)
    assert alone.request.retrieved.rows.tolist() == samples.request.retrieved.rows[1:2].tolist()
    assert torch.equal(alone.images, samples.images[1:2])
    with pytest.raises(ValueError, match="got by='row', expected text or label"):
        draw(ways.classes, loaded, ["flag"], k=2, by="row", seed=0)


def test_popular_rows_become_queries(loaded: Loaded) -> None:
    popularity = loaded.data.table("train").popularity(2)
    most = int(np.argmax(popularity))
    samples = draw(ways.popular, loaded, 3, k=2, top_m=1, weighted=False, seed=0, steps=1)
    assert (samples.request.retrieved.rows[:, 0] == most).all()  # the nearest row to a row is itself


def test_texts_are_mixed_with_pictures_and_led_away_from_texts(loaded: Loaded, tmp_path: Path) -> None:
    database, embedder = loaded.retriever.database, loaded.retriever.embedder
    Image.fromarray(database.patches([7])[0]).save(tmp_path / "a.png")
    texts = embedder.texts(["white flag"]), embedder.texts(["red"])
    picture = torch.from_numpy(database.embeddings([7]))
    for options, wanted in (
        ({"image": tmp_path / "a.png", "image_weight": 0.8}, mix([texts[0], picture], [1.0, 0.8])),
        ({"negative": "red", "negative_weight": 0.4}, mix(list(texts), [1.0, -0.4])),
    ):
        samples = draw(ways.texts, loaded, ["white flag"], k=3, seed=0, steps=1, **options)
        assert samples.request.retrieved.rows.tolist() == loaded.retriever(wanted, 3).rows.tolist()


def test_a_strip_leads_from_one_text_to_another(loaded: Loaded, tmp_path: Path) -> None:
    options = {"k": 3, "steps": 2, "scale": 2.0}
    samples = draw(ways.between, loaded, "white flag", "pirate", 5, seed=4, **options)
    ends = loaded.retriever.embedder.texts(["white flag", "pirate"])
    assert samples.request.retrieved.rows.tolist() == loaded.retriever(between(*ends, 5), 3).rows.tolist()
    assert samples.seeds == [4] * 5 and samples.request.labels[1] == "white flag -> pirate, 25%"
    for place, text in ((0, "white flag"), (4, "pirate")):
        assert torch.equal(samples.images[place], draw(ways.texts, loaded, [text], seed=4, **options).images[0])
    strip = np.asarray(Image.open(save(samples, loaded, tmp_path, "strip", per_row=5)))
    assert strip.shape == (2 + 18, 2 + 5 * 18, 3)
    assert np.array_equal(strip[2:18, 2 + 18 : 18 + 18], np.asarray(Image.open(tmp_path / "strip-001.png")))
    rows = np.asarray(Image.open(save(samples, loaded, tmp_path, "rows", per_row=3)))
    assert rows.shape == (2 + 2 * 18, 2 + 3 * 18, 3) and (rows[20:, 2 + 2 * 18 :] == 255).all()
    save(*make_again(read_record(tmp_path / "strip-003.png")), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "strip-003.png").read_bytes()
    for start, end, n, message in (
        ("white flag", "", 5, "empty prompt"),
        ("white flag", "pirate", 1, "n=1 .*at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(ways.between, loaded, start, end, n, seed=4, **options)


def test_a_strip_also_leads_to_and_from_open_pictures(loaded: Loaded, tmp_path: Path) -> None:
    pictures = [Image.fromarray(patch) for patch in loaded.retriever.database.patches([7, 20])]
    options = {"k": 2, "seed": 5, "steps": 2}
    samples = draw(ways.between, loaded, *pictures, 3, **options)
    assert samples.request.retrieved.rows[[0, 2], 0].tolist() == [7, 20]
    mixed = draw(ways.between, loaded, "white flag", pictures[1], 3, **options)
    for place, way, given in ((0, ways.texts, (["white flag"],)), (2, ways.image, (pictures[1], 1))):
        assert torch.equal(mixed.images[place], draw(way, loaded, *given, **options).images[0])
    assert mixed.request.labels[1] == "white flag -> a picture in memory, 50%"
    save(mixed, loaded, tmp_path, "strip")
    save(*make_again(read_record(tmp_path / "strip-001.png")), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "strip-001.png").read_bytes()


def test_pictures_and_rows_are_queries_too(loaded: Loaded, tmp_path: Path) -> None:
    Image.fromarray(loaded.retriever.database.patches([7])[0]).save(tmp_path / "a.png")
    samples = draw(ways.image, loaded, tmp_path / "a.png", 2, k=2, seed=5, steps=1)
    assert (samples.request.retrieved.rows[:, 0] == 7).all() and samples.seeds == [5, 6]
    samples = draw(ways.rows, loaded, [3, 9, 4], 2, seed=0, steps=1)
    assert samples.request.retrieved.rows.tolist() == [[3, 9, 4]] * 2
    with pytest.raises(ValueError, match="got rows from 3 to 40, expected 0 to 39"):
        draw(ways.rows, loaded, [3, 40], 1, seed=0)
    with pytest.raises(ValueError, match="got images of 1000000000 x 16 pixels, expected at most 89,478,485"):
        draw(ways.rows, loaded, [3, 4], 1, seed=0, height=10**9)
    with pytest.raises(FileNotFoundError, match=r"no picture at .*b\.png"):
        draw(ways.image, loaded, tmp_path / "b.png", 1, k=2, seed=0)
    with pytest.raises(ValueError, match="got tokens 'text', expected neighbours, picture, both"):
        draw(ways.image, loaded, tmp_path / "a.png", 1, k=2, seed=0, tokens="text")
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(ValueError, match=r"b\.png: unreadable image"):
        draw(ways.image, loaded, tmp_path / "b.png", 1, k=2, seed=0)


@pytest.mark.parametrize(("tokens", "length"), [("neighbours", 2), ("both", 3), ("picture", 1)])
def test_a_picture_is_seen_itself_or_by_its_neighbours(
    loaded: Loaded, tokens: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, seen, denoiser = loaded.retriever.database.patches([7])[0], [], loaded.model.denoiser
    Image.fromarray(255 - patch).save(tmp_path / "a.png")
    monkeypatch.setattr(loaded.model, "denoiser", lambda c, *a, **more: seen.append(c) or denoiser(c, *a, **more))
    samples = draw(ways.image, loaded, tmp_path / "a.png", 2, k=2, seed=4, steps=2, scale=1.0, tokens=tokens)
    query = loaded.retriever.embedder.images(1 - torch.from_numpy(patch).permute(2, 0, 1)[None].float() / 127.5)
    found = loaded.retriever(query, 2).embeddings[0]
    expected = {"neighbours": found, "both": torch.cat([query, found]), "picture": query}[tokens]
    assert seen[0].shape == (1, length, 8)
    assert torch.allclose(seen[0][0], 3 * torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)
    save(samples, loaded, tmp_path, "made")
    save(*make_again(read_record(tmp_path / "made-001.png")), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "made-001.png").read_bytes()
    Image.fromarray(patch).save(tmp_path / "a.png")
    if tokens == "neighbours":  # the record has them, so the picture is not needed
        make_again(read_record(tmp_path / "made-001.png"))
    else:
        with pytest.raises(ValueError, match=r"a\.png has sha256 .*, the image was made with .*; give that one"):
            make_again(read_record(tmp_path / "made-001.png"))


def test_neighbours_come_from_the_rows_that_are_asked_for(loaded: Loaded) -> None:
    licences = loaded.retriever.database.column("licence").to_numpy(zero_copy_only=False)
    chosen = load(str(loaded.path), only=["licence=MIT", "licence=Apache-2.0"])
    for samples in (
        draw(ways.texts, chosen, ["white flag", "pirate flag"], k=3, seed=0, steps=1),
        draw(ways.classes, chosen, ["flags"] * 4, k=2, pool=8, seed=0, steps=1),
        draw(ways.classes, chosen, ["flags"] * 4, k=2, by="label", seed=0, steps=1),
        draw(ways.popular, chosen, 4, k=2, top_m=1.0, weighted=False, seed=0, steps=1),
    ):
        assert set(licences[samples.request.retrieved.rows].ravel()) <= {"MIT", "Apache-2.0"}
    assert len(load(str(loaded.path), only=["licence=MIT", "class_id=flags/flag"]).retriever.rows) > 2
    for rules, message in (
        (["licence"], "got the rule 'licence', expected COLUMN=VALUE"),
        (["licence=none"], "no row of .* has licence=none"),
        (["colour=red"], "no metadata column 'colour', it has"),
    ):
        with pytest.raises(ValueError, match=message):
            load(str(loaded.path), only=rules)


def test_class_names_are_found_whole_in_part_and_nearly(loaded: Loaded) -> None:
    database = loaded.retriever.database
    assert resolve_class("flags/flag", database) == "flags/flag"
    assert resolve_class("flag", database) == "flag"
    assert resolve_class("flagss", database) == "flags"
    with pytest.raises(ValueError, match="no class 'submarine'.*flags/flag"):
        resolve_class("submarine", database)


def test_save_writes_images_grid_and_provenance(loaded: Loaded, tmp_path: Path) -> None:
    samples = draw(ways.texts, loaded, ["pirate flag", "white flag"], k=2, seed=3, steps=1)
    grid = save(samples, loaded, tmp_path, "flags")
    assert Image.open(grid).size == (2 + 3 * 18, 2 + 2 * 18)
    pixels = np.asarray(Image.open(tmp_path / "flags-001.png"))
    assert np.array_equal(np.asarray(Image.open(grid))[20:36, 2:18], pixels)
    neighbour = np.asarray(Image.open(grid))[2:18, 20:36]
    assert np.array_equal(neighbour, loaded.retriever.database.patches(samples.request.retrieved.rows[0, 0])[0])
    record = json.loads((tmp_path / "flags.json").read_text())
    assert [image["seed"] for image in record["images"]] == [3, 4]
    entry = record["images"][0]["neighbours"][0]
    assert entry["row"] == samples.request.retrieved.rows[0, 0]
    assert entry["licence"] in ("MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0")


@pytest.mark.parametrize("tokens", ["neighbours", "both", "text"])
def test_an_image_is_made_again_from_its_record(loaded: Loaded, tmp_path: Path, tokens: str) -> None:
    options = {"steps": 2, "scale": 3.0, "sampler": "dpmpp_2m_sde", "eta": 0.5, "batch_size": 3, "rescale": 0.3}
    options |= {"weaker": str(loaded.path.parent), "text_scale": 2.0 if tokens == "both" else None}
    samples = draw(ways.texts, loaded, ["pirate flag", "white flag"], k=2, seed=3, tokens=tokens, **options)
    save(samples, loaded, tmp_path, "flags")
    record = read_record(tmp_path / "flags-001.png")
    assert record["seed"] == 4 and record["query"] == "white flag" and record["asked"] == {"way": "text", "k": 2}
    again, with_ = make_again(record)
    save(again, with_, tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "flags-001.png").read_bytes()
    other = {**record, "settings": {**record["settings"]}, "weaker_sha256": "other"}
    with pytest.raises(ValueError, match="checkpoint .* has fingerprint .*, the image was made with other"):
        make_again(other)
    with pytest.raises(ValueError, match=r"checkpoint .* the image was made with other; give that one"):
        make_again({**record, "checkpoint_sha256": "other"})


def test_an_image_is_made_again_over_a_database_that_another_processor_built(
    loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its embeddings, and with them its fingerprint, differ in the last bits; its rows and its embedder do not."""
    save(draw(ways.texts, loaded, ["pirate flag"], k=2, steps=2), loaded, tmp_path, "flag")
    record = {**read_record(tmp_path / "flag-000.png"), "database_fingerprint": "other"}
    save(*make_again(record), tmp_path, "again")
    assert "was built anew" in caplog.text
    first, again = (np.asarray(Image.open(tmp_path / f"{name}-000.png")) for name in ("flag", "again"))
    assert np.array_equal(first, again)
    moved = [{**neighbour, "uri": "elsewhere.parquet#1"} for neighbour in record["neighbours"]]
    gone = [{**neighbour, "row": 10**9} for neighbour in record["neighbours"]]
    for change in ({"neighbours": moved}, {"neighbours": gone}, {"embedder_fingerprint": "other"}):
        with pytest.raises(ValueError, match=r"database .* the image was made with other; give that one"):
            make_again({**record, **change})


def test_a_record_of_format_1_is_read_as_one_of_format_2(tmp_path: Path) -> None:
    """It held tokens, edits and pictures of the query among the settings, and no prompt and no threshold of copies."""
    settings = {"tokens": "both", "text_scale": 3.0, "steps": 5, "weaker": "other.ckpt", "weaker_sha256": "a1"}
    about = {"format": 1, "asked": {"way": "text", "k": 4}, "query": "a cat", "copy": {"threshold": 0.98}}
    text = json.dumps({**about, "settings": settings})
    save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "a.png", {KEYWORD: text})
    record = read_record(tmp_path / "a.png")
    assert (record["prompt"], record["tokens"], record["weaker_sha256"]) == ("a cat", "both", "a1")
    kept = {"text_scale": 3.0, "steps": 5, "weaker": "other.ckpt"}
    assert record["settings"] == {**kept, "scale": 1.0, "weaker_scale": 1.0, "copy_threshold": 0.98}


def test_an_image_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image at .*a\.png"):
        read_record(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match="cannot be read .*; give a PNG that the sampling scripts wrote"):
        read_record(tmp_path / "a.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has a record of format none, expected 1 or 2"):
        read_record(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [" "], "k": 2}, "empty prompt"),
        ({"prompts": ["flag"], "k": 2, "tokens": "picture"}, "got tokens 'picture'"),
        ({"prompts": ["flag"], "k": 41}, "41"),
        ({"prompts": ["flag"], "k": 2, "sampler": "dimm"}, "did you mean 'ddim'"),
        ({"prompts": ["flag " * 40], "k": 2}, "tokens"),
        ({"prompts": ["flag"], "k": 2, "precision": "16"}, "precision='16', expected 32 or bf16"),
        ({"prompts": ["flag"], "k": 2, "tokens": "words"}, "got tokens 'words', expected neighbours, text, both"),
    ],
)
def test_wrong_input_is_refused(loaded: Loaded, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(ways.texts, loaded, seed=0, **options)


def test_find_checkpoint_takes_the_newest_run(tmp_path: Path, loaded: Loaded) -> None:
    config = (loaded.path.parent / "config.yaml").read_text()
    for age, name in enumerate(("old", "new")):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(config)
        (folder / "last.ckpt").touch()
        os.utime(folder / "last.ckpt", (age, age))
    assert find_checkpoint(logs=str(tmp_path)) == tmp_path / "new/checkpoints/last.ckpt"
    assert find_checkpoint(str(tmp_path / "old")) == tmp_path / "old/checkpoints/last.ckpt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        find_checkpoint(str(tmp_path / "none"))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="no config.yaml beside the checkpoint .*model.safetensors"):
        load(str(tmp_path))
    (tmp_path / "config.yaml").write_text("model: {target: ldm.models.autoencoder.VQModelInterface}")
    with pytest.raises(ValueError, match="holds a ldm.models.autoencoder.VQModelInterface, expected a diffusion"):
        load(str(tmp_path))
