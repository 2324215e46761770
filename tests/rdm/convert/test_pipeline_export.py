"""The exported pipeline of diffusers makes our images of texts, with the neighbours that we find, without our code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from toy import grid_config, rarm_config, rdm_config, references_config, ship

from ldm.checkpoint import read_weights, write_weights
from ldm.convert.diffusers import import_diffusers
from ldm.run import read_run
from rdm.convert.pipeline import export_pipeline
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.ways import rows, texts

PROMPTS = ["a red flag", "a flag of stars"]


def exported(model: Path, output: Path, **options: Any) -> tuple[Pipeline, Any]:
    """Returns our pipeline of a shipped folder, and that of diffusers."""
    loaded = Pipeline.load(str(model), **options)
    export_pipeline(*read_run(model), loaded, output)
    return loaded, diffusers.DiffusionPipeline.from_pretrained(
        str(output), custom_pipeline=str(output), trust_remote_code=True
    )


def with_wide_codes(model: Path) -> Path:
    """Moves the codes of an untrained first stage apart; else latents are about as near to several of them."""
    state = read_weights(model / "model.safetensors")
    state["first_stage_model.quantize.embedding.weight"] *= 64
    write_weights(model / "model.safetensors", state)
    return model


def generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def embeddings_only(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Any]:
    folder = tmp_path_factory.mktemp("embeddings")
    return exported(with_wide_codes(ship(folder / "model", rdm_config(folder))), folder / "exported")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Any]:
    """A model of latents, whose neighbours must not be copies of one another."""
    folder = tmp_path_factory.mktemp("references")
    config = references_config(folder)
    config["data"]["params"] |= {"same_outline": 0.6, "agreement": {"among": 9}}
    config["model"]["params"]["references"] = {"p_drop": 0.1, "agreement": 0.35}
    return exported(with_wide_codes(ship(folder / "model", config)), folder / "exported")


@pytest.mark.parametrize("kind", ["embeddings_only", "references"])
@pytest.mark.parametrize(
    "theirs",
    [{"guidance_scale": 2.0}, {"guidance_scale": 1.0}, {"guidance_scale": 3.0, "reference_scale": 0.0}],
)
def test_images_of_texts_equal_ours(kind: str, theirs: dict[str, float], request: pytest.FixtureRequest) -> None:
    ours, pipe = request.getfixturevalue(kind)
    names = {"guidance_scale": "scale", "reference_scale": "reference_scale"}
    given = {names[name]: value for name, value in theirs.items() if kind == "references" or name != "reference_scale"}
    settings = Settings(sampler="ddim", steps=5, copy_threshold=None, **given)
    expected = sample(ours, texts(ours, PROMPTS, seed=7), settings)
    got = pipe(PROMPTS, generator=generators(range(7, 9)), num_inference_steps=5, output_type="pt", **theirs)
    found = [[each["row"] for each in line] for line in got.neighbours]
    assert found == expected.request.retrieved.rows.tolist()
    assert np.abs(got.scores - expected.request.retrieved.scores).max() < 1e-5
    images = expected.images / 2 + 0.5
    assert float(images.std()) > 0.05
    assert float((got.images - images).abs().max()) < 1e-3


def test_images_of_chosen_rows_equal_ours(references: tuple[Pipeline, Any]) -> None:
    ours, pipe = references
    chosen = [3, 17, 30]
    expected = sample(ours, rows(ours, chosen, 1, seed=3), Settings(sampler="ddim", steps=4, copy_threshold=None))
    got = pipe(rows=[chosen], generator=generators(range(3, 4)), num_inference_steps=4, output_type="np")
    assert np.abs(got.images[0] - (expected.images[0] / 2 + 0.5).permute(1, 2, 0).numpy()).max() < 1e-3
    assert [each["row"] for each in got.neighbours[0]] == chosen
    assert pipe(rows=[chosen], num_inference_steps=1).images[0].size == (16, 16)


def test_copies_are_left_out_as_ours_are(references: tuple[Pipeline, Any]) -> None:
    """With many neighbours, so that some are left out, and with few, which are chosen among nine."""
    ours, pipe = references
    for k in (2, 3, 8):
        expected = texts(ours, PROMPTS, k=k).retrieved.rows
        near, _ = pipe.retriever.nearest(pipe.retriever.embed(PROMPTS), k)
        assert near.tolist() == expected.tolist()
    assert pipe.retriever.config.agree == ours.retriever.outlines.agree == 9
    nearest = ours.retriever.index.search(ours.retriever.embedder.texts(PROMPTS).numpy(), 3, None).rows
    assert texts(ours, PROMPTS, k=3).retrieved.rows.tolist() != nearest.tolist()
    pipe.retriever.register_to_config(same_outline=None)
    with_copies, _ = pipe.retriever.nearest(pipe.retriever.embed(PROMPTS), 8)
    pipe.retriever.register_to_config(same_outline=0.6)
    assert with_copies.tolist() != expected.tolist()


def test_a_part_of_the_database_is_exported_with_its_licences(tmp_path: Path) -> None:
    model = ship(tmp_path / "model", rdm_config(tmp_path))
    ours, pipe = exported(model, tmp_path / "out", only="licence=CC-BY-4.0")
    assert 2 <= len(pipe.retriever) < len(ours.retriever.database)
    assert {pipe.retriever.known(row)["licence"] for row in range(len(pipe.retriever))} == {"CC-BY-4.0"}
    got = pipe(PROMPTS[0], num_inference_steps=1)
    assert [each["row"] for each in got.neighbours[0]] == texts(ours, PROMPTS[0]).retrieved.rows[0].tolist()


def test_the_folder_comes_back_bit_equal(references: tuple[Pipeline, Any]) -> None:
    ours, pipe = references
    config, state = import_diffusers(pipe.config._name_or_path)
    _, expected = read_run(ours.path.parent)
    assert config["model"]["target"] == "rdm.models.diffusion.ddpm.RetrievalAugmentedDiffusion"
    assert state.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


def test_diffusers_saves_what_it_loads(references: tuple[Pipeline, Any], tmp_path: Path) -> None:
    _, pipe = references
    pipe.save_pretrained(tmp_path / "saved")
    shutil.copy(Path(pipe.config._name_or_path) / "pipeline.py", tmp_path / "saved")
    for part in ("retriever", "reference_encoder"):
        shutil.copy(Path(pipe.config._name_or_path) / part / f"{part}.py", tmp_path / "saved" / part)
    again = diffusers.DiffusionPipeline.from_pretrained(
        str(tmp_path / "saved"), custom_pipeline=str(tmp_path / "saved"), trust_remote_code=True
    )
    images = [
        each(PROMPTS, generator=generators(range(2)), num_inference_steps=2, output_type="np").images
        for each in (pipe, again)
    ]
    assert np.array_equal(*images)


def test_the_folder_needs_nothing_of_ours(references: tuple[Pipeline, Any], tmp_path: Path) -> None:
    """In a process of its own, that cannot import our packages."""
    _, pipe = references
    code = (
        "import sys; sys.modules['ldm'] = sys.modules['rdm'] = None\n"
        "from diffusers import DiffusionPipeline\n"
        f"folder = {str(pipe.config._name_or_path)!r}\n"
        "pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)\n"
        "pipe('a red flag', num_inference_steps=1).images[0].save('flag.png')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "flag.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither of prompt and rows"),
        ({"prompt": "a", "rows": [[1]]}, "neither of prompt and rows"),
        ({"prompt": " "}, "expected texts that are not empty"),
        ({"prompt": "a", "num_neighbours": 41}, "got 41 neighbours, expected at most 40"),
        ({"rows": [[1, 40]]}, "got rows from 1 to 40, expected 0 to 39"),
        ({"rows": [[1, 2], [3]]}, "all of the same length"),
        ({"prompt": "a", "output_type": "jpg"}, "output_type='jpg'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: dict[str, Any], message: str, embeddings_only: tuple[Pipeline, Any]
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        embeddings_only[1](**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"), [(grid_config, "has grid_tokens beside its U-Net"), (rarm_config, "is an autoregressive")]
)
def test_models_without_counterpart_are_refused(make: Any, message: str, tmp_path: Path) -> None:
    model = ship(tmp_path / "model", make(tmp_path))
    with pytest.raises(ValueError, match=message):
        exported(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_are_described_by_their_place_in_the_database(embeddings_only: tuple[Pipeline, Any]) -> None:
    ours, pipe = embeddings_only
    lines = (Path(pipe.config._name_or_path) / "retriever" / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len(ours.retriever.database)
    (expected,) = ours.retriever.database.metadata([5])
    assert json.loads(lines[5])["image_id"] == expected["image_id"]
