"""The scripts and the page draw with a pipeline of diffusers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from PIL import Image
from tiny_pipelines import SIDE, Tiny

from ldm.pictures import to_uint8
from rdm.sampling import ways
from rdm.sampling.concepts import concepts
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import read_record
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scripts() -> Commands:
    with Commands() as running:
        yield running


def options(tiny: Tiny, *more: str) -> list[str]:
    given = {"generator": tiny.pipeline, "adapter": tiny.adapter, "database": tiny.database, "steps": "3"}
    return [word for name, value in given.items() for word in (f"--{name}", value)] + list(more)


def run(scripts: Commands, folder: Path, script: str, words: list[str]) -> str:
    code, said = scripts.run([str(ROOT / "scripts" / f"{script}.py"), *words], folder)
    assert code == 0, said
    return said


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def as_pixels(image: torch.Tensor) -> np.ndarray:
    return to_uint8(image).permute(1, 2, 0).numpy()


def test_txt2img_has_the_bits_of_python_and_sample_makes_it_again(
    scripts: Commands, sd: Tiny, drawn_by: Pipeline, tmp_path: Path
) -> None:
    few = ["--prompt", "a red flag", "--n_samples", "2", "--knn", "2", "--seed", "4", "--no_copy_check"]
    own = ["--negative_prompt", "blue", "--neighbour_scale", "0.8"]
    run(scripts, tmp_path, "txt2img", options(sd, *few, *own, "--outdir", "out"))
    settings = Settings(steps=3, copy_threshold=None, negative_prompt="blue", neighbour_scale=0.8)
    expected = sample(drawn_by, ways.texts(drawn_by, ["a red flag"] * 2, k=2, seed=4), settings).images
    for place in range(2):
        assert np.array_equal(pixels(tmp_path / f"out/txt2img-{place:03d}.png"), as_pixels(expected[place]))
    run(scripts, tmp_path, "sample", ["--from-image", "out/txt2img-001.png", "--outdir", "again"])
    assert np.array_equal(pixels(tmp_path / "again/again-000.png"), as_pixels(expected[1]))


def test_two_concepts_are_on_the_sheet(scripts: Commands, sd: Tiny, drawn_by: Pipeline, tmp_path: Path) -> None:
    few = ["--prompt", "a flag and a bear", "--concept", "--n_samples", "1", "--knn", "2", "--no_copy_check"]
    run(scripts, tmp_path, "txt2img", options(sd, *few, "--outdir", "out"))
    request = concepts(drawn_by, ["a flag and a bear"], k=2)
    record = read_record(tmp_path / "out/txt2img-000.png")
    assert [each["row"] for each in record["neighbours"]] == request.retrieved.rows[0].tolist()
    assert Image.open(tmp_path / "out/txt2img-grid.png").width > 5 * SIDE  # the image and four neighbours


def test_pictures_are_varied_and_edited(scripts: Commands, sd: Tiny, tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE), "red").save(tmp_path / "a.png")
    few = ["--n_samples", "1", "--knn", "2", "--no_copy_check", "--outdir", "out"]
    run(scripts, tmp_path, "sample", options(sd, "--image", "a.png", *few))
    run(scripts, tmp_path, "sample", options(sd, "--rows", "3", "a.png", "--n_samples", "1", "--outdir", "rows"))
    run(scripts, tmp_path, "class2img", options(sd, "--class", "flag", *few))
    run(scripts, tmp_path, "edit", options(sd, "--image", "a.png", "--prompt", "a bear", "--strength", "0.7", *few))
    for file in ("out/sample-000.png", "rows/sample-000.png", "out/class2img-000.png", "out/edit-000.png"):
        assert pixels(tmp_path / file).shape == (SIDE, SIDE, 3)


def test_an_error_is_one_line(scripts: Commands, sd: Tiny, sdxl: Tiny, tmp_path: Path) -> None:
    words = ["--generator", sd.pipeline, "--adapter", sdxl.adapter, "--database", sd.database, "--prompt", "a"]
    code, said = scripts.run([str(ROOT / "scripts/txt2img.py"), *words], tmp_path)
    assert code == 2 and "error: adapter" in said and "Traceback" not in said


def test_the_page_draws_edits_and_shows_the_neighbours(sd: Tiny, drawn_by: Pipeline) -> None:
    pytest.importorskip("gradio")
    from rdm.web.asking import Ask, jobs
    from rdm.web.drawing import Drawn
    from rdm.web.page import page
    from rdm.web.studio import Studio

    given = {"generator": sd.pipeline, "adapter": sd.adapter, "image_encoder": None}
    with Studio.open(databases={"mine": sd.database}, generator=given) as studio:
        blocks = page(studio)
        labels = {each["props"].get("label") for each in blocks.config["components"]}
        assert {"negative prompt", "neighbour scale", "offload", "Steps", "Edit"} <= labels
        assert "spacing" not in labels and studio.names == ["mine"]
        asked = Ask(words=["a red flag"], k=2, seed=4, settings={"steps": 3, "neighbour_scale": 0.8})
        (drawn,) = [event for event in studio.draw(jobs(studio, asked)) if isinstance(event, Drawn)]
        with pytest.raises(FileNotFoundError, match="neighbours/train"):  # of which nobody has built a table
            jobs(studio, Ask(way="popular", words=[], n=1))
        studio.popular.count_again(studio.pipeline())
        assert studio.popular.note(studio.pipeline()) == ""
    expected = sample(
        drawn_by, ways.texts(drawn_by, ["a red flag"], k=2, seed=4), Settings(steps=3, neighbour_scale=0.8)
    )
    shown = np.asarray(Image.open(io.BytesIO(drawn.png)).convert("RGB"))
    assert np.array_equal(shown, as_pixels(expected.images[0])) and len(drawn.neighbours) == 2
    assert drawn.record["generator"]["adapter"] == sd.adapter
