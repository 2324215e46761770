"""Watching a request as it is sampled: every step is told, no bit of an image changes, and a watcher can end it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import split
from PIL import Image
from torch import Tensor
from toy import plain_config, rarm_config, ship

from ldm.models.diffusion.samplers import SAMPLERS
from ldm.pictures import to_uint8
from ldm.stopping import Stopped
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import save
from rdm.sampling.request import Request
from rdm.sampling.samples import Samples, sample, sample_batches
from rdm.sampling.settings import Settings

PROMPTS = ["pirate flag", "white flag", "rainbow flag"]


class Watcher:
    """Keeps what it is told, with every preview; at the step ``last`` it ends sampling."""

    def __init__(self, last: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.previews: list[Tensor] = []
        self.last = last

    def __call__(self, done: int, total: int, preview: Callable[[], Tensor]) -> None:
        self.steps.append((done, total))
        self.previews.append(preview())
        if done == self.last:
            raise Stopped(signal.SIGTERM)


def watched(way: Callable[..., Request], loaded: Pipeline, *what: Any, **options: Any) -> tuple[Samples, Watcher]:
    """The samples of a request and what their watcher saw, after a check that unwatched ones have the same bits."""
    settings, asked = split(options)
    request, watcher = way(loaded, *what, **asked), Watcher()
    samples, unwatched = (sample(loaded, request, settings, watch) for watch in (watcher, None))
    assert torch.equal(samples.images, unwatched.images)
    assert samples.seeds == unwatched.seeds and samples.copies == unwatched.copies
    return samples, watcher


def counted(batches: int, steps: int) -> list[tuple[int, int]]:
    return [(done, batches * steps) for done in range(1, batches * steps + 1)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_of_every_sampler_is_told(loaded: Pipeline, sampler: str) -> None:
    samples, watcher = watched(ways.texts, loaded, PROMPTS, sampler=sampler, steps=4, batch_size=2)
    assert watcher.steps == counted(2, 4)
    assert [tuple(each.shape) for each in watcher.previews] == [(2, 3, 16, 16)] * 4 + [(1, 3, 16, 16)] * 4
    assert all(each.abs().max() <= 1 for each in watcher.previews)
    assert not torch.equal(watcher.previews[0], watcher.previews[2])
    if sampler == "ddpm":  # its last step leads to its estimate itself
        last = torch.cat([watcher.previews[3], watcher.previews[7]])
        torch.testing.assert_close(last, samples.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"tile": 8}, {"tokens": "both", "text_scale": 3.0}])
def test_watching_changes_no_bit_with_other_options(loaded: Pipeline, options: dict[str, Any]) -> None:
    assert watched(ways.texts, loaded, PROMPTS[:1], steps=3, **options)[1].steps == counted(1, 3)


def test_a_model_with_references_is_watched(with_references: Pipeline) -> None:
    assert watched(ways.texts, with_references, PROMPTS[:2], steps=3)[1].steps == counted(2, 3)


def test_candidates_and_further_draws_count(loaded: Pipeline) -> None:
    """Of five images in batches of two, three candidates each are 6, 6 and 3 images: 3 + 3 + 2 batches."""
    prompts = [*PROMPTS, "red flag", "blue flag"]
    _, watcher = watched(ways.texts, loaded, prompts, steps=2, batch_size=2, best_of=3)
    assert watcher.steps == counted(8, 2)
    always = {"copy_threshold": -1.0, "reject_copies": 1}  # each image is drawn twice
    _, watcher = watched(ways.texts, loaded, PROMPTS, steps=2, batch_size=2, **always)
    assert [done for done, _ in watcher.steps] == list(range(1, 9))
    assert [total for _, total in watcher.steps] == [4, 4, 6, 6, 6, 6, 8, 8]


def test_edits_are_watched_with_repeats_and_inversion(loaded: Pipeline) -> None:
    picture = Image.fromarray(loaded.retriever.database.patches([7])[0])
    mask = Image.fromarray(np.repeat(np.uint8([[0] * 8 + [255] * 8]), 16, axis=0))
    fast: dict[str, Any] = {"prompt": "white flag", "steps": 4, "copy_threshold": None}
    samples, watcher = watched(edit, loaded, picture, 2, mask=mask, repeats=3, **fast)
    assert watcher.steps == counted(2, 4 * 3)
    given = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    for image in [*(preview[0] for preview in watcher.previews), *samples.images]:
        assert torch.equal(to_uint8(image)[..., :8], given[..., :8])
    assert watched(edit, loaded, picture, 2, strength=0.5, **fast)[1].steps == counted(2, 2)
    assert watched(edit, loaded, picture, 2, strength=0.0, **fast)[1].steps == []
    assert watched(edit, loaded, picture, 2, invert=True, batch_size=2, **fast)[1].steps == counted(1, 4 + 4)
    padded, watcher = watched(edit, loaded, picture.crop((0, 0, 15, 13)), 1, outpaint=(1, 0, 0, 0), **fast)
    assert watcher.previews[0].shape == padded.images.shape == (1, 3, 13, 16)


@pytest.mark.parametrize("reads", [None, "classes"])
def test_plain_models_are_watched(reads: str | None, tmp_path: Path) -> None:
    plain = Pipeline.load(str(ship(tmp_path / "model", plain_config(tmp_path, reads))))
    assert watched(ways.popular, plain, 3, steps=3, batch_size=2)[1].steps == counted(2, 3)


def test_an_autoregressive_model_tells_every_code_and_shows_those_it_has(tmp_path: Path) -> None:
    model = Pipeline.load(str(ship(tmp_path / "model", rarm_config(tmp_path))))
    samples, watcher = watched(ways.texts, model, PROMPTS, batch_size=2, copy_threshold=None)
    assert watcher.steps == counted(2, 64)
    assert torch.equal(torch.cat([watcher.previews[63], watcher.previews[127]]), samples.images)
    part = watcher.previews[19]  # of 8 codes in a row, two rows and a half; a code is 2 pixels wide
    assert part.shape == (2, 3, 16, 16) and not part[..., 6:, :].any() and not part[..., 4:6, 8:].any()
    assert part[..., :4, :].any() and part[..., 4:6, :8].any()


def test_a_pipeline_is_watched_and_files_are_those_of_unwatched_images(loaded: Pipeline, tmp_path: Path) -> None:
    watcher = Watcher()
    images = loaded(PROMPTS[:2], steps=2, watch=watcher)
    assert watcher.steps == counted(2, 2)
    assert [each.tobytes() for each in images] == [each.tobytes() for each in loaded(PROMPTS[:2], steps=2)]
    loaded.edit(images[0], "white flag", strength=1.0, steps=2, watch=watcher)
    assert watcher.steps[4:] == counted(1, 2)
    request, settings = ways.texts(loaded, PROMPTS), Settings(steps=2)
    for name, watch in (("watched", Watcher()), ("not", None)):
        save(sample_batches(loaded, request, settings, watch), loaded, tmp_path / name, "a")
    for file in sorted((tmp_path / "not").iterdir()):
        assert (tmp_path / "watched" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("last", [1, 3, 4])
def test_a_watcher_ends_sampling_and_the_model_is_as_before(loaded: Pipeline, tmp_path: Path, last: int) -> None:
    request, settings = ways.texts(loaded, PROMPTS), Settings(steps=2, tile=8)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    expected, watcher = sample(loaded, request, settings), Watcher(last)
    with pytest.raises(Stopped, match=f"{(last - 1) // 2} images are in"):
        save(sample_batches(loaded, request, settings, watcher), loaded, tmp_path, "a")
    assert watcher.steps == counted(3, 2)[:last]
    assert len(list(tmp_path.glob("a-0*.png"))) == (last - 1) // 2
    assert loaded.model.first_stage_tile is None and not loaded.model.training
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert torch.equal(sample(loaded, request, settings).images, expected.images)


def test_whatever_a_watcher_raises_arrives(loaded: Pipeline) -> None:
    def fail(done: int, total: int, preview: Callable[[], Tensor]) -> None:
        raise LookupError(f"{done} of {total}, {list(preview().shape)}")

    def drawn(settings: Settings, prompts: Sequence[str]) -> None:
        sample(loaded, ways.texts(loaded, prompts), settings, fail)

    with pytest.raises(LookupError, match=r"1 of 6, \[1, 3, 16, 16\]"):
        drawn(Settings(steps=2), PROMPTS)
