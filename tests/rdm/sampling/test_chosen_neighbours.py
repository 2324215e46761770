"""Neighbours that are chosen: left out, replaced by other rows or by given pictures, and made again from records."""

from __future__ import annotations

import io
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy import ROOT, plain_config, rarm_config, rdm_config, ship

from rdm.sampling import ways
from rdm.sampling.conditions import context_of, reference_latents
from rdm.sampling.edit import edit
from rdm.sampling.neighbours import Neighbour, with_neighbours
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import KEYWORD, make_again, read_record, save
from rdm.sampling.request import Request, together
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.sheet import sheet
from rdm.sampling.shown import shown_picture

PROMPTS = ["pirate flag", "white flag"]
FAST = Settings(steps=2)
MODELS = ["loaded", "with_references", "with_grids"]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Pipeline:
    """The small model of this name."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def files(loaded: Pipeline, tmp_path: Path) -> Path:
    """A folder with the picture of row 7, ``seven.png``, and a larger one that is no row, ``wide.png``."""
    Image.fromarray(loaded.retriever.database.patches([7])[0]).save(tmp_path / "seven.png")
    noise = np.random.default_rng(0).integers(0, 255, (5, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 40), Image.Resampling.NEAREST).save(tmp_path / "wide.png")
    return tmp_path


def unit(vectors: Any) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_what_stays_keeps_its_similarity_and_what_comes_has_its_own(loaded: Pipeline, files: Path) -> None:
    asked = ways.texts(loaded, PROMPTS, k=3, seed=5)
    first, second, third = asked.retrieved.rows[1].tolist()
    other = next(row for row in range(40) if row not in (first, second, third))
    request = with_neighbours(loaded, asked, 1, [third, str(files / "wide.png"), other, first])
    assert (request.labels, list(request.seeds), request.prompts) == (PROMPTS[1:], [6], PROMPTS[1:])
    assert request.retrieved.rows.tolist() == [[third, -1, other, first]]
    assert request.asked == {"way": "text", "k": 3, "neighbours": "chosen"}
    picture = Image.open(files / "wide.png").crop((12, 0, 52, 40)).resize((16, 16), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    vectors, embedder = request.retrieved.embeddings[0], loaded.retriever.embedder
    torch.testing.assert_close(vectors[1:2], embedder.images(pixels), atol=0.05, rtol=0.05)  # another resampling
    assert torch.equal(
        vectors[[0, 2, 3]], torch.from_numpy(loaded.retriever.database.embeddings([third, other, first]))
    )
    scores = request.retrieved.scores[0]
    assert scores[[0, 3]].tolist() == asked.retrieved.scores[1, [2, 0]].tolist()
    np.testing.assert_allclose(scores, unit(vectors) @ unit(embedder.texts(PROMPTS[1:])[0]), atol=1e-6)
    assert asked.retrieved.rows.shape == (2, 3) and not asked.pictures


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_an_image_depends_on_its_seed_and_the_neighbours_that_are_left(model: Pipeline, files: Path) -> None:
    """The ways to choose them make the same bits, which are not those with all neighbours."""
    settings = Settings(steps=4, scale=9.0)

    def images(request: Request) -> torch.Tensor:
        return sample(model, request, settings).images

    asked = ways.texts(model, PROMPTS, k=3, seed=5)
    kept = [int(asked.retrieved.rows[1, 2]), str(files / "wide.png")]
    made = images(with_neighbours(model, asked, 1, kept))
    assert torch.equal(made, images(ways.rows(model, kept, 1, seed=6)))
    assert torch.equal(made, images(ways.rows(model, [kept[0], Image.open(files / "wide.png")], 1, seed=6)))
    for other in (asked.part([1]), ways.rows(model, kept[:1], 1, seed=6), ways.rows(model, kept, 1, seed=7)):
        assert not torch.equal(made, images(other))


def test_a_choice_that_changes_nothing_is_the_request_itself(loaded: Pipeline, files: Path, tmp_path: Path) -> None:
    asked = ways.texts(loaded, PROMPTS, tokens="both")
    same = with_neighbours(loaded, asked, 1, asked.retrieved.rows[1].tolist())
    assert same.asked == asked.asked and same.retrieved.scores.tolist() == asked.retrieved.scores[1:].tolist()
    changed = with_neighbours(loaded, asked, 1, [3, str(files / "wide.png")])
    assert changed.tokens == "both" and context_of(loaded, changed).shape[1] == 3
    back = with_neighbours(loaded, changed, 0, asked.retrieved.rows[1].tolist())
    for name, request in (("one", same), ("other", replace_asked(back, asked))):
        save(sample(loaded, request, FAST), loaded, tmp_path / name, "a")
    assert (tmp_path / "one/a-000.png").read_bytes() == (tmp_path / "other/a-000.png").read_bytes()
    again = with_neighbours(loaded, changed, 0, [changed.pictures[0], 3])  # a picture that is shown already
    assert again.pictures == list(changed.pictures)
    assert again.retrieved.scores[0].tolist() == changed.retrieved.scores[0, ::-1].tolist()


def replace_asked(request: Request, other: Request) -> Request:
    return Request(**{**vars(request), "asked": other.asked})


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_the_picture_of_a_row_is_seen_as_the_row_is(model: Pipeline, files: Path) -> None:
    row, given = (ways.rows(model, [3, each], 1) for each in (7, files / "seven.png"))
    close: dict[str, float] = {"atol": 2e-3, "rtol": 2e-3}  # stored embeddings are rounded to 16 bits
    torch.testing.assert_close(given.retrieved.embeddings, row.retrieved.embeddings, **close)
    torch.testing.assert_close(context_of(model, given), context_of(model, row), **close)
    other = ways.rows(model, [3, files / "wide.png"], 1)
    assert (context_of(model, other) - context_of(model, row)).abs().max() > 0.1
    latents = [reference_latents(model, each.retrieved.rows, 16, 16, each.pictures) for each in (given, row, other)]
    assert torch.equal(latents[0][0, 1], latents[1][0, 1])
    assert not torch.allclose(latents[2][0, 1], latents[1][0, 1], atol=1e-2)


@pytest.mark.parametrize(("size", "count"), [(1, 3), (2, 3), (2, 1)])
@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_images_are_made_again_from_their_records(model: Pipeline, size: int, count: int, files: Path) -> None:
    """Their bits do not depend on the other images of their batch, whose neighbours are others."""
    asked, settings = ways.texts(model, PROMPTS, k=3), Settings(steps=2, batch_size=size)
    wide, seven = str(files / "wide.png"), str(files / "seven.png")
    chosen: list[list[Neighbour]] = [[wide, 5, seven][:count], [8, seven, 9][:count]]
    request = together([with_neighbours(model, asked, place, each) for place, each in enumerate(chosen)])
    samples = sample(model, request, settings)
    save(samples, model, files / "first", "a", neighbours=True)
    for place, each in enumerate(chosen):
        record = read_record(files / f"first/a-00{place}.png")
        assert [found.get("row", found.get("file")) for found in record["neighbours"]] == each
        again, pipeline = make_again(record)
        assert torch.equal(again.images[0], samples.images[place])
        save(again, pipeline, files / "again", "a", neighbours=True)
        for name in ("", *(f"-neighbour-{number}" for number in range(count))):
            first, second = files / f"first/a-00{place}{name}.png", files / f"again/a-000{name}.png"
            assert first.read_bytes() == second.read_bytes()


def test_the_autoregressive_model_sees_given_pictures(files: Path) -> None:
    model = Pipeline.load(str(ship(files / "model", rarm_config(files))))
    request = with_neighbours(model, ways.texts(model, PROMPTS), 0, [str(files / "wide.png")])
    settings = Settings(scale=30.0)
    samples = sample(model, request, settings)
    save(samples, model, files / "first", "a")
    assert torch.equal(make_again(read_record(files / "first/a-000.png"))[0].images, samples.images)
    assert not torch.equal(samples.images, sample(model, ways.rows(model, [5], 1), settings).images)


def test_edits_keep_what_they_edit(loaded: Pipeline, files: Path) -> None:
    asked = edit(loaded, files / "seven.png", 2, strength=0.7)
    request = with_neighbours(loaded, asked, 1, [str(files / "wide.png"), int(asked.retrieved.rows[1, 0])])
    assert request.canvas is asked.canvas
    samples = sample(loaded, request, Settings(steps=4))
    assert not torch.equal(samples.images, sample(loaded, asked, Settings(steps=4)).images[1:])
    save(samples, loaded, files / "first", "a")
    save(*make_again(read_record(files / "first/a-000.png")), files / "again", "a")
    assert (files / "first/a-000.png").read_bytes() == (files / "again/a-000.png").read_bytes()


def test_without_a_query_a_new_similarity_is_unknown(loaded: Pipeline, files: Path) -> None:
    asked = ways.popular(loaded, 1, k=2)
    kept = int(asked.retrieved.rows[0, 1])
    request = with_neighbours(loaded, asked, 0, [kept, 5 if kept != 5 else 6, str(files / "wide.png")])
    save(sample(loaded, request, Settings(steps=2, best_of=2)), loaded, files / "first", "a")
    found = read_record(files / "first/a-000.png")["neighbours"]
    assert [each["similarity"] for each in found] == [round(float(asked.retrieved.scores[0, 1]), 4), None, None]
    assert "NaN" not in (files / "first/a.json").read_text()
    save(*make_again(read_record(files / "first/a-000.png")), files / "again", "a")
    assert (files / "first/a-000.png").read_bytes() == (files / "again/a-000.png").read_bytes()


def test_a_picture_is_named_by_file_and_hash_and_must_be_as_it_was(loaded: Pipeline, files: Path) -> None:
    wide, opened = files / "wide.png", Image.open(files / "wide.png")
    for name, picture in (("file", wide), ("open", opened)):
        request = ways.rows(loaded, [12, picture], 1)
        assert request.labels == [f"rows and pictures 12, {wide if name == 'file' else 'a picture in memory'}"]
        save(sample(loaded, request, FAST), loaded, files, name)
    records = {name: read_record(files / f"{name}-000.png") for name in ("file", "open")}
    of_file, of_open = (records[name]["neighbours"][1] for name in ("file", "open"))
    assert of_file["file"] == str(wide) and of_open["file"] is None and "row" not in of_file
    assert of_file["sha256"] == shown_picture(loaded, wide).sha256 != of_open["sha256"]
    assert np.array_equal(*(np.asarray(Image.open(files / f"{name}-000.png")) for name in records))
    with pytest.raises(ValueError, match=r"^the image was made with a picture in memory [^\n]*from Python$"):
        make_again(records["open"])
    Image.open(wide).rotate(90).save(wide)
    with pytest.raises(ValueError, match=r"wide\.png has sha256 .*, the image was made with .*; give that one"):
        make_again(records["file"])
    wide.unlink()
    with pytest.raises(FileNotFoundError, match=r"no picture at .*wide\.png"):
        make_again(records["file"])


def test_sheets_and_files_show_given_pictures(loaded: Pipeline, files: Path) -> None:
    samples = sample(loaded, ways.rows(loaded, [4, files / "wide.png", files / "seven.png"], 2), FAST)
    database = loaded.retriever.database
    page, shown = sheet(samples, database).permute(1, 2, 0).numpy(), shown_picture(loaded, files / "wide.png").patch
    expected = [database.patches([4])[0], shown, database.patches([7])[0]]
    for row in range(2):
        for place, picture in enumerate(expected, 1):
            assert np.array_equal(page[2 + 18 * row :, 2 + 18 * place :][:16, :16], picture)
    save(samples, loaded, files, "a", neighbours=True)
    for place, picture in enumerate(expected):
        with Image.open(files / f"a-001-neighbour-{place}.png") as written:
            about = json.loads(written.text[KEYWORD])  # type: ignore[attr-defined]
            assert np.array_equal(np.asarray(written), picture)
        assert (about.get("row"), about.get("file")) == [(4, None), (None, str(files / "wide.png")),
                                                         (None, str(files / "seven.png"))][place]  # fmt: skip


def test_copy_detection_compares_with_given_pictures_too(loaded: Pipeline, files: Path) -> None:
    request = ways.rows(loaded, [4, files / "wide.png"], 1, seed=3)
    samples = sample(loaded, request, Settings(steps=2, copy_threshold=-1.0, reject_copies=1, best_of=2))
    assert samples.copies is not None and samples.copies[0].is_copy and len(samples.copies[0].rejected) == 1
    pixels = (samples.images + 1).mul(127.5).round().div(127.5) - 1
    vector = loaded.retriever.embedder.images(pixels)[0]
    expected = unit(request.retrieved.embeddings[0]) @ unit(vector)
    assert samples.copies[0].neighbours == pytest.approx(expected.tolist(), abs=1e-3)
    save(samples, loaded, files, "a")
    likeness = [each["likeness"] for each in read_record(files / "a-000.png")["neighbours"]]
    assert likeness == list(samples.copies[0].neighbours)


def test_requests_are_joined_only_with_equal_numbers_of_neighbours(loaded: Pipeline, files: Path) -> None:
    asked, wide = ways.texts(loaded, PROMPTS, k=2), str(files / "wide.png")
    first, second = with_neighbours(loaded, asked, 0, [4, wide]), with_neighbours(loaded, asked, 1, [wide, wide])
    joined = together([second, first, second])
    assert joined.retrieved.rows.tolist() == [[-1, -2], [4, -3], [-1, -2]] and len(joined.pictures) == 3
    assert joined.part([1]).pictures[2] is first.pictures[0]
    assert torch.equal(sample(loaded, joined, FAST).images[1], sample(loaded, first, FAST).images[0])
    with pytest.raises(ValueError, match="images with 1 and 2 neighbours, expected equal numbers"):
        together([first, with_neighbours(loaded, asked, 1, [4])])


CHOICES: list[tuple[Callable[[Path], Sequence[Any]], str]] = [
    (lambda _: [], "got no neighbour, expected at least one"),
    (lambda _: [3, 40], "got rows from 3 to 40, expected 0 to 39"),
    (lambda _: [-1], "got rows from -1 to -1, expected 0 to 39"),
    (lambda _: [3, 11], "row 11 is removed from database .*; give another"),
    (lambda _: [1.5], "got 1.5 as a neighbour, expected the number of a row, a file or a PIL image"),
    (lambda _: [True], "got True as a neighbour"),
    (lambda files: [3, files / "words.png"], r"words\.png: unreadable image"),
    (lambda files: [3, files / "none.png"], r"no picture at .*none\.png"),
]


@pytest.fixture(scope="module")
def removed(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model over a database whose row 11 is removed, and an image of this row from before, ``before-000.png``."""
    folder = tmp_path_factory.mktemp("removed")
    loaded = Pipeline.load(str(ship(folder / "model", rdm_config(folder))))
    save(sample(loaded, ways.rows(loaded, [3, 11], 1), FAST), loaded, folder, "before")
    loaded.retriever.database.remove(np.array([11]))
    return loaded


@pytest.mark.parametrize(("choice", "message"), CHOICES)
def test_what_cannot_be_shown_is_refused(
    removed: Pipeline, files: Path, choice: Callable[[Path], Sequence[Any]], message: str
) -> None:
    (files / "words.png").write_text("words")
    asked, chosen = ways.texts(removed, PROMPTS), choice(files)
    for attempt in (lambda: ways.rows(removed, chosen, 1), lambda: with_neighbours(removed, asked, 0, chosen)):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_image_of_a_row_that_was_removed_since_is_made_again(removed: Pipeline, tmp_path: Path) -> None:
    before = removed.path.parents[1] / "before-000.png"
    save(*make_again(read_record(before)), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == before.read_bytes()


def test_images_whose_neighbours_cannot_be_switched(loaded: Pipeline, files: Path) -> None:
    asked = ways.texts(loaded, PROMPTS, tokens="text")
    with pytest.raises(ValueError, match="tokens 'text', with which the model does not see them"):
        with_neighbours(loaded, asked, 0, [3])
    for place in (-1, 2):
        with pytest.raises(ValueError, match=f"got place {place}, expected 0 to 1"):
            with_neighbours(loaded, ways.texts(loaded, PROMPTS), place, [3])
    plain = Pipeline.load(str(ship(files / "model", plain_config(files))))
    with pytest.raises(ValueError, match="plain latent diffusion model, which has no database"):
        with_neighbours(plain, ways.popular(plain, 1), 0, [3])
    with pytest.raises(ValueError, match="plain latent diffusion model, which has no database"):
        ways.rows(plain, [3], 1)


def test_the_script_takes_rows_and_pictures_and_makes_the_bits_of_python(
    loaded: Pipeline, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sample.py", *words, "--outdir", str(files / "out")])
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        runpy.run_path(str(ROOT / "scripts/sample.py"), run_name="__main__")

    chosen = ["12", str(files / "wide.png"), "3"]
    run("--ckpt", str(loaded.path), "--rows", *chosen, "--n_samples", "2", "--seed", "4", "--steps", "2")
    samples = sample(loaded, ways.rows(loaded, [12, files / "wide.png", 3], 2, seed=4), FAST)
    save(samples, loaded, files / "python", "sample")
    for name in ("sample-000.png", "sample-001.png", "sample-grid.png"):
        assert (files / "out" / name).read_bytes() == (files / "python" / name).read_bytes()
    run("--from-image", str(files / "out/sample-001.png"))
    assert (files / "out/again-000.png").read_bytes() == (files / "out/sample-001.png").read_bytes()
    with pytest.raises(SystemExit):
        run("--ckpt", str(loaded.path), "--rows", "12", str(files / "none.png"))
