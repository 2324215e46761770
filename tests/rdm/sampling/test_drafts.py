"""Retrieval where it is needed: which drafts are kept, what the others become, and what is recorded and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw, model_samples
from PIL import Image

from rdm.loading import Loaded
from rdm.sampling import ways
from rdm.sampling.concepts import concepts
from rdm.sampling.record import make_again, read_record, save
from rdm.sampling.samples import Samples, sample
from rdm.sampling.settings import Settings

PROMPTS = ["pirate flag", "white flag", "rainbow flag", "a cross"]
FAST: dict[str, Any] = {"k": 2, "steps": 2, "copy_threshold": 1.1}


def drafts_of(loaded: Loaded) -> tuple[Samples, list[float]]:
    """The images of the texts alone, and their similarities to the texts."""
    alone = draw(ways.texts, loaded, PROMPTS, tokens="text", **FAST)
    pixels = ((alone.images + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    embedder = loaded.retriever.embedder
    with torch.no_grad():
        similar = torch.cosine_similarity(embedder.images(pixels).float(), embedder.texts(PROMPTS).float())
    return alone, similar.tolist()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_drafts_that_are_similar_enough_are_kept_and_the_others_drawn_with_neighbours(
    loaded: Loaded, batch_size: int
) -> None:
    alone, scores = drafts_of(loaded)
    least = sorted(scores)[2] - 1e-3  # two are below
    shown = draw(ways.texts, loaded, PROMPTS, batch_size=batch_size, **FAST)
    if batch_size > 1:
        alone = draw(ways.texts, loaded, PROMPTS, tokens="text", batch_size=batch_size, **FAST)
    found = draw(ways.texts, loaded, PROMPTS, batch_size=batch_size, retrieve_below=least, **FAST)
    assert found.drafts is not None and [each.score for each in found.drafts] == pytest.approx(scores, abs=6e-5)
    assert sorted(each.kept for each in found.drafts) == [False, False, True, True]
    for place, score in enumerate(scores):
        expected = alone if score >= least else shown
        assert torch.equal(found.images[place], expected.images[place])
        assert found.copies[place] == expected.copies[place] and found.is_draft(place) == (score >= least)


def test_all_or_no_drafts_are_kept_at_the_ends(loaded: Loaded) -> None:
    for least, options in ((-1.0, {"tokens": "text"}), (1.0, {})):
        found = draw(ways.texts, loaded, PROMPTS, retrieve_below=least, **FAST)
        assert torch.equal(found.images, draw(ways.texts, loaded, PROMPTS, **options, **FAST).images)


def test_records_say_what_the_model_saw_and_images_are_made_again(loaded: Loaded, tmp_path: Path) -> None:
    _, scores = drafts_of(loaded)
    least = sorted(scores)[2] - 1e-3
    found = draw(ways.texts, loaded, PROMPTS, retrieve_below=least, best_of=2, **FAST)
    save(found, loaded, tmp_path, "flags")
    for place, draft in enumerate(found.drafts):
        record = read_record(tmp_path / f"flags-{place:03d}.png")
        assert record["draft"] == {"score": draft.score, "kept": draft.kept}
        assert record["tokens"] == ("text" if draft.kept else "neighbours")
        assert record["settings"]["retrieve_below"] == least and len(record["candidates"]) == 2
        save(*make_again(record), tmp_path, "again")
        assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / f"flags-{place:03d}.png").read_bytes()


def test_the_sheet_shows_no_neighbours_beside_a_draft(loaded: Loaded, tmp_path: Path) -> None:
    _, scores = drafts_of(loaded)
    least = sorted(scores)[2] - 1e-3
    found = draw(ways.texts, loaded, PROMPTS, retrieve_below=least, **FAST)
    page = np.asarray(Image.open(save(found, loaded, tmp_path, "flags")))
    side, gap = found.images.shape[-1], 2
    for place, draft in enumerate(found.drafts):
        top = gap + place * (side + gap)
        beside = page[top : top + side, 2 * gap + side :]
        assert (beside.min() == 255) == draft.kept


def test_concepts_and_evaluations_have_drafts_too(loaded: Loaded) -> None:
    request = concepts(loaded, ["white flag and a cross"], k=2)
    alone = draw(ways.texts, loaded, ["white flag and a cross"], tokens="text", k=4, steps=2, copy_threshold=None)
    found = sample(loaded, request, Settings(steps=2, copy_threshold=None, retrieve_below=-1.0))
    assert torch.equal(found.images, alone.images) and found.is_draft(0)
    (batch,) = model_samples(loaded, 1, PROMPTS[:1], retrieve_below=-1.0, steps=2, k=2).batches(0, 1)
    (other,) = model_samples(loaded, 1, PROMPTS[:1], tokens="text", steps=2, k=2).batches(0, 1)
    assert torch.equal(batch, other)


def test_every_step_of_drafts_and_images_is_told(loaded: Loaded) -> None:
    told: list[tuple[int, int]] = []
    request = ways.texts(loaded, PROMPTS, k=2)
    settings = Settings(steps=2, copy_threshold=None, retrieve_below=1.0)
    sample(loaded, request, settings, lambda done, every, _: told.append((done, every)))
    assert [done for done, _ in told] == list(range(1, 1 + 2 * 2 * len(PROMPTS)))
    assert told[-1][0] == told[-1][1] and all(done <= every for done, every in told)


def test_requests_without_a_text_are_refused(loaded: Loaded) -> None:
    settings = Settings(retrieve_below=0.3)
    with pytest.raises(ValueError, match="retrieve_below=0.3 without a text"):
        sample(loaded, ways.popular(loaded, 1, k=2), settings)
    with pytest.raises(ValueError, match="tokens 'both', expected 'neighbours'"):
        sample(loaded, ways.texts(loaded, PROMPTS, tokens="both"), settings)
    with pytest.raises(ValueError, match="retrieve_below='much', expected a finite number"):
        Settings.of(retrieve_below="much")
