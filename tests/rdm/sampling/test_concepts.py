"""Neighbours of several concepts of a prompt are those that each concept has alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdm.sampling import ways
from rdm.sampling.concepts import concepts, split
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings


def test_a_prompt_is_split_at_commas_and_the_word_and() -> None:
    assert split("a sandy cat, a dog and the sun") == ["a sandy cat", "a dog", "the sun"]
    assert split(" one ") == ["one"] and split("a AND b;a") == ["a", "b"] and split("a, and b") == ["a", "b"]


@pytest.mark.parametrize("named", [(), ("a sun", "white flag")])
def test_each_concept_has_its_own_neighbours(loaded: Pipeline, named: tuple[str, ...], tmp_path: Path) -> None:
    request = concepts(loaded, ["white flag and a cross"], named, k=2, seed=3)
    words = list(named) or ["white flag", "a cross"]
    apart = ways.texts(loaded, words, k=2).retrieved
    assert request.retrieved.rows.tolist() == [apart.rows.ravel().tolist()]
    assert torch.equal(request.retrieved.embeddings[0], apart.embeddings.flatten(0, 1))
    assert request.retrieved.scores.ravel().tolist() == apart.scores.ravel().tolist()
    samples = sample(loaded, request, Settings(steps=2, copy_threshold=None))
    save(samples, loaded, tmp_path, "a")
    record = read_record(tmp_path / "a-000.png")
    assert record["asked"]["concepts"] == (list(named) or "split") and len(record["neighbours"]) == 4
    assert torch.equal(make_again(record)[0].images, samples.images)


def test_prompts_with_different_numbers_of_concepts_are_drawn_apart(loaded: Pipeline) -> None:
    with pytest.raises(ValueError, match="1 and 2 concepts .a, b.*expected equal numbers"):
        concepts(loaded, ["a", "a, b"])
    assert concepts(loaded, ["a", "a, b"], ["flag"], k=1).retrieved.rows.shape == (2, 1)
    with pytest.raises(ValueError, match="prompt"):
        concepts(loaded, [])
