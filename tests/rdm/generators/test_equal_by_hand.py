"""A generator makes what diffusers makes if a user calls the pipeline by hand with the same neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from drawing import draw
from PIL import Image
from tiny_pipelines import SIDE, Tiny
from torch import Tensor

import rdm
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline

PROMPTS = ["a red flag", "stars and stripes"]


def by_hand(tiny: Tiny, adapter: str) -> Any:
    """The pipeline with its adapter, loaded as the manual of diffusers says."""
    file = Path(adapter)
    pipe = AutoPipelineForText2Image.from_pretrained(tiny.pipeline, local_files_only=True)
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder="image_encoder")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def called(pipe: Any, place: int, scale: float = 0.5, **options: Any) -> Tensor:
    """The image of a prompt, in [-1, 1]."""
    pipe.set_ip_adapter_scale(scale)
    generator = [torch.Generator().manual_seed(7 + place)]
    options = {"prompt": [PROMPTS[place]], "num_inference_steps": 3, "output_type": "pt", **options}
    return pipe(generator=generator, **options).images * 2 - 1


def of_vectors(vectors: Tensor) -> list[Tensor]:
    return [torch.stack([torch.zeros_like(vectors), vectors])]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_vectors_of_the_database(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors go in as they are, and no picture is read."""
    tiny: Tiny = request.getfixturevalue(kind)
    model = rdm.load(**tiny.arguments)
    monkeypatch.setattr(RetrievalDatabase, "patches", None)
    samples = draw(ways.texts, model, PROMPTS, k=3, seed=7, steps=3, copy_threshold=None)
    assert samples.images.shape == (2, 3, SIDE, SIDE) and samples.settings.batch_size == 1
    pipe = by_hand(tiny, tiny.adapter)
    for place in range(2):
        vectors = samples.request.retrieved.embeddings[place]
        expected = called(pipe, place, ip_adapter_image_embeds=of_vectors(vectors))
        assert torch.equal(samples.images[place], expected[0])
    assert float(samples.images.std()) > 0.1 and not torch.equal(samples.images[0], samples.images[1])


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_pictures_for_the_hidden_states(kind: str, request: pytest.FixtureRequest) -> None:
    """The pictures of the rows go through the image encoder of diffusers' own call, several at once."""
    tiny: Tiny = request.getfixturevalue(kind)
    model = rdm.load(**{**tiny.arguments, "adapter": tiny.plus})
    samples = draw(ways.texts, model, PROMPTS, k=3, seed=7, steps=3, copy_threshold=None)
    pipe = by_hand(tiny, tiny.plus)
    for place in range(2):
        rows = samples.request.retrieved.rows[place]
        pictures = [Image.fromarray(patch) for patch in model.retriever.database.patches(rows)]
        expected = called(pipe, place, ip_adapter_image=[pictures])
        assert torch.allclose(samples.images[place], expected[0], atol=1e-4)
        without = called(pipe, place, 0.0, ip_adapter_image=[pictures])
        assert float((samples.images[place] - without[0]).abs().max()) > 0.01


def test_pictures_for_a_database_of_another_encoder(sd: Tiny) -> None:
    model = rdm.load(**{**sd.arguments, "database": sd.other})
    samples = draw(ways.texts, model, PROMPTS, k=2, seed=7, steps=3, copy_threshold=None)
    pipe = by_hand(sd, sd.adapter)
    for place in range(2):
        rows = samples.request.retrieved.rows[place]
        pictures = [Image.fromarray(patch) for patch in model.retriever.database.patches(rows)]
        expected = called(pipe, place, ip_adapter_image=[pictures])
        assert torch.allclose(samples.images[place], expected[0], atol=1e-4)


def test_vectors_and_pictures_of_the_same_encoder_agree(sd: Tiny, drawn_by: Pipeline) -> None:
    """The vectors of the database are those of the pictures, up to their rounding to float16."""
    samples = draw(ways.texts, drawn_by, PROMPTS[:1], k=2, seed=7, steps=3, copy_threshold=None)
    pictures = [
        Image.fromarray(patch) for patch in drawn_by.retriever.database.patches(samples.request.retrieved.rows[0])
    ]
    expected = called(by_hand(sd, sd.adapter), 0, ip_adapter_image=[pictures])
    assert float((samples.images - expected).abs().mean()) < 0.05


def test_the_text_alone_is_the_pipeline_without_an_adapter(sd: Tiny, drawn_by: Pipeline) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(sd.pipeline, local_files_only=True)
    for options in ({"tokens": "text"}, {"neighbour_scale": 0.0}):
        samples = draw(ways.texts, drawn_by, PROMPTS[:1], k=2, seed=7, steps=3, copy_threshold=None, **options)
        generator = [torch.Generator().manual_seed(7)]
        images = pipe(PROMPTS[:1], num_inference_steps=3, generator=generator, output_type="pt").images
        assert torch.equal(samples.images, images * 2 - 1)


@pytest.mark.parametrize("task", ["strength", "mask", "outpaint"])
def test_edits(sd: Tiny, drawn_by: Pipeline, task: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    paint = np.zeros((SIDE, SIDE), dtype=np.uint8)
    paint[:, SIDE // 2 :] = 255
    options: dict[str, Any] = {"mask": Image.fromarray(paint)} if task == "mask" else {}
    options |= {"outpaint": [0, 0, 8, 0]} if task == "outpaint" else {}
    options |= {"strength": 0.7} if task == "strength" else {}
    asked = {"prompt": PROMPTS[0], "k": 2, "seed": 7, "steps": 3, "copy_threshold": None}
    samples = draw(edit, drawn_by, picture, 1, **asked, **options)
    canvas: Any = samples.request.canvas
    auto = AutoPipelineForImage2Image if canvas.paint is None else AutoPipelineForInpainting
    pipe = auto.from_pipe(by_hand(sd, sd.adapter))
    pipe.set_progress_bar_config(disable=True)
    call = {"image": canvas.picture / 2 + 0.5, "strength": canvas.about["strength"]}
    if canvas.paint is not None:
        call |= {"mask_image": canvas.paint, "height": canvas.picture.shape[2], "width": canvas.picture.shape[3]}
    vectors = of_vectors(samples.request.retrieved.embeddings[0])
    expected = called(pipe, 0, ip_adapter_image_embeds=vectors, **call)
    assert torch.equal(samples.images, canvas.paste(expected))
    if canvas.paint is not None:
        kept = (canvas.paint == 0).expand_as(samples.images)
        assert torch.equal(samples.images[kept], canvas.picture[kept]) and bool(kept.any())
        assert not torch.equal(samples.images[~kept], canvas.picture[~kept])


@pytest.mark.parametrize("tokens", ["pooled", "hidden"])
def test_bits_are_equal_in_any_batch(sd: Tiny, drawn_by: Pipeline, tokens: str) -> None:
    """An image is the same beside others, in another place, and alone in a batch that is filled up."""
    model = drawn_by if tokens == "pooled" else rdm.load(**{**sd.arguments, "adapter": sd.plus})
    options = {"k": 2, "steps": 3, "copy_threshold": None, "batch_size": 2, "sampler": "ddim", "eta": 1.0}
    words = [*PROMPTS, "a cross"]
    whole = draw(ways.texts, model, words, seed=7, **options)
    turned = draw(ways.texts, model, [words[2]], seed=9, **options)
    assert torch.equal(whole.images[2], turned.images[0])
    pair = draw(ways.texts, model, ["a bear", words[1]], seed=7, **options)
    assert torch.equal(whole.images[1], pair.images[1]) and not torch.equal(whole.images[0], pair.images[0])
