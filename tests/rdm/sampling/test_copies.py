"""Copy detection: copies of database rows are found, flagged and redrawn."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image

from benchmarks.copies import copied, held_out
from rdm.loading import Loaded, load
from rdm.sampling import ways
from rdm.sampling.copies import CopyCheck, compare, draw_checked, further_seed
from rdm.sampling.record import make_again, read_record, save

PROMPTS = ["pirate flag", "white flag", "rainbow flag"]


def row_picture(loaded: Loaded, row: int) -> torch.Tensor:
    """Returns the picture of a database row, ``[3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(loaded.retriever.database.patches([row])[0]).permute(2, 0, 1).float() / 127.5 - 1


def test_a_row_is_found_to_be_a_copy_of_itself(loaded: Loaded) -> None:
    database = loaded.retriever.database
    vectors = database.embeddings(np.arange(len(database))).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in (0, 7, 39):
        found = compare(row_picture(loaded, row), vectors[[3, 9]], loaded.retriever, 0.99)
        assert database.metadata([found.row])[0]["sha256"] == database.metadata([row])[0]["sha256"]
        assert found.similarity == pytest.approx(1, abs=1e-3) and found.is_copy and found.rejected == ()
        assert found.neighbours == pytest.approx(unit[[3, 9]] @ unit[row], abs=1e-3)
    turned = compare(-row_picture(loaded, 7), vectors[[3]], loaded.retriever, 1.01)
    assert not turned.is_copy


def test_all_rows_are_compared_also_where_neighbours_come_from_some(loaded: Loaded) -> None:
    licences = loaded.retriever.database.column("licence").to_pylist()
    chosen = load(str(loaded.path), only=["licence=MIT"])
    row = next(row for row, licence in enumerate(licences) if licence != "MIT")
    found = compare(row_picture(loaded, row), loaded.retriever.database.embeddings([0]), chosen.retriever, 0.99)
    assert licences[found.row] != "MIT" and found.similarity == pytest.approx(1, abs=1e-3)


def test_marked_images_are_drawn_again_and_no_others(loaded: Loaded) -> None:
    """The second image is a copy on its first and second draw; the other images are never copies."""
    plain, drawn = torch.zeros(3, 16, 16), []
    level = compare(plain, loaded.retriever.database.embeddings([0]), loaded.retriever, 1.0).similarity
    seeds = {further_seed(6, 1): row_picture(loaded, 4), 6: row_picture(loaded, 7)}

    def draw(places: list[int], given: list[int]) -> torch.Tensor:
        drawn.append((list(places), list(given)))
        return torch.stack([seeds.get(seed, plain) for seed in given])

    neighbours, check = torch.from_numpy(loaded.retriever.database.embeddings([[0]] * 3)), (level + 1) / 2
    images, final, found = draw_checked(draw, [5, 6, 7], neighbours, loaded.retriever, CopyCheck(check, 3))
    again = [further_seed(6, 1), further_seed(6, 2)]
    assert drawn == [([0, 1, 2], [5, 6, 7]), ([1], [again[0]]), ([1], [again[1]])]
    assert final == [5, again[1], 7] and [likeness.rejected for likeness in found] == [(), (6, again[0]), ()]
    assert torch.equal(images, torch.stack([plain] * 3)) and not any(likeness.is_copy for likeness in found)
    images, final, found = draw_checked(draw, [6], neighbours[:1], loaded.retriever, CopyCheck(check, 1))
    assert final == again[:1] and found[0].is_copy and torch.equal(images[0], seeds[again[0]])  # kept with its flag


def test_further_seeds_depend_on_seed_and_attempt_alone() -> None:
    seeds = [further_seed(seed, attempt) for seed in range(100) for attempt in range(1, 6)]
    assert len(set(seeds)) == 500 and all(100 < seed < 2**32 for seed in seeds)
    assert further_seed(3, 2) == seeds[3 * 5 + 1]


def test_a_redrawn_image_depends_on_nothing_beside_it_and_is_made_again(loaded: Loaded, tmp_path: Path) -> None:
    options = {"k": 2, "steps": 2, "copy_threshold": -1.0, "reject_copies": 2}  # every sample is flagged
    together = draw(ways.texts, loaded, PROMPTS, seed=5, **options)
    alone = draw(ways.texts, loaded, PROMPTS[1:2], seed=6, **options)
    assert torch.equal(together.images[1:2], alone.images) and together.copies[1] == alone.copies[0]
    assert together.seeds == [further_seed(seed, 2) for seed in (5, 6, 7)]
    expected = draw(ways.texts, loaded, PROMPTS[1:2], seed=further_seed(6, 2), k=2, steps=2, copy_threshold=None)
    assert torch.equal(alone.images, expected.images) and expected.copies is None
    save(together, loaded, tmp_path, "flags")
    record = read_record(tmp_path / "flags-001.png")
    assert record["copy"]["rejected_seeds"] == [6, further_seed(6, 1)] and record["seed"] == further_seed(6, 2)
    save(*make_again(record), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "flags-001.png").read_bytes()


def test_a_copy_is_marked_in_record_sheet_and_log(
    loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free = draw(ways.texts, loaded, PROMPTS, k=2, seed=5, steps=2)
    scores = sorted(likeness.similarity for likeness in free.copies)
    threshold = (scores[1] + scores[2]) / 2
    samples = draw(ways.texts, loaded, PROMPTS, k=2, seed=5, steps=2, copy_threshold=threshold)
    assert torch.equal(samples.images, free.images)
    with caplog.at_level(logging.WARNING):
        grid = save(samples, loaded, tmp_path, "flags")
    copy = next(i for i, likeness in enumerate(samples.copies) if likeness.similarity == scores[2])
    records = json.loads((tmp_path / "flags.json").read_text())["images"]
    assert [record["copy"]["is_copy"] for record in records] == [i == copy for i in range(3)]
    found, row = records[copy]["copy"], samples.copies[copy].row
    assert found["row"] == row and found["threshold"] == threshold and found["likeness"] == scores[2]
    assert found["uri"] == loaded.retriever.database.metadata([row])[0]["uri"]
    assert records[copy]["neighbours"][1]["likeness"] == samples.copies[copy].neighbours[1]
    assert f"1 of 3 images are flagged as copies: flags-{copy:03d}.png of {found['uri']}" in caplog.text
    sheet = np.asarray(Image.open(grid))
    left = [sheet[i * 18 + 1 : i * 18 + 17, 0].tolist() for i in range(3)]  # the gap beside each sample
    assert left == [[[220, 0, 0] if i == copy else [255] * 3] * 16 for i in range(3)]
    written = np.asarray(Image.open(tmp_path / f"flags-{copy:03d}.png"))
    assert np.array_equal(sheet[copy * 18 + 2 : copy * 18 + 18, 2:18], written)


def test_an_unchecked_image_carries_no_word_of_copies(loaded: Loaded, tmp_path: Path) -> None:
    save(draw(ways.texts, loaded, PROMPTS[:1], k=2, seed=5, steps=1, copy_threshold=None), loaded, tmp_path, "flags")
    record = read_record(tmp_path / "flags-000.png")
    assert "copy" not in record and "likeness" not in record["neighbours"][0]
    again, _ = make_again(record)
    assert again.copies is None


def test_what_the_threshold_is_chosen_from(loaded: Loaded) -> None:
    """In the tiny data set the pictures of every split are rows, and neighbour tables keep near-duplicates."""
    database, model = loaded.retriever.database, loaded.model
    vectors = database.embeddings(np.arange(len(database))).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T - 2 * np.eye(len(unit))
    np.testing.assert_allclose(held_out(loaded, 4), likeness.max(axis=1)[[0, 13, 26, 39]], atol=2e-3)
    made = model.to_image(model.to_latent(row_picture(loaded, 13)[None]))[0].clamp(-1, 1)
    assert copied(loaded, 4)[1] == compare(made, vectors[[0]], loaded.retriever, 1.0).similarity
