"""What is equal to the bit, and what only nearly: processes, threads, batch sizes, readers of pictures.

docs/determinism.md names these tests; most of its rows are shown by tests beside the code that they are about.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from pictures import QUIET, ProjectionEmbedder, contents
from PIL import Image

from ldm.pictures import to_uint8
from rdm.retrieval.builder.build import build_database
from rdm.sampling import ways
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import save

ROOT = Path(__file__).parents[3]
PROMPTS = ["pirate flag", "white flag", "rainbow flag"]


@pytest.fixture
def threads() -> Iterator[Any]:
    """Sets the number of threads of torch until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_another_process_makes_the_same_files(loaded: Pipeline, tmp_path: Path) -> None:
    """In another folder and with another order of hashes, with as many threads."""
    save(draw(ways.texts, loaded, PROMPTS[:2], k=2, seed=5, steps=3), loaded, tmp_path / "here", "txt2img")
    words = [sys.executable, str(ROOT / "scripts/txt2img.py"), "--ckpt", str(loaded.path), "--outdir", "there"]
    words += ["--knn", "2", "--seed", "5", "--steps", "3", "--n_samples", "1"]
    words += [word for prompt in PROMPTS[:2] for word in ("--prompt", prompt)]
    own = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(words, cwd=tmp_path, env=os.environ | own, check=True, capture_output=True, timeout=300)
    for number in range(2):
        here, there = (Image.open(tmp_path / name / f"txt2img-00{number}.png") for name in ("here", "there"))
        np.testing.assert_array_equal(np.asarray(here), np.asarray(there))


def test_sampling_twice_in_a_process_gives_equal_bits(loaded: Pipeline) -> None:
    """The generators of torch and NumPy have no say, and are left as they were."""
    first = draw(ways.texts, loaded, PROMPTS, k=2, seed=5, steps=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    np.random.seed(1)  # noqa: NPY002 (the one that must not matter)
    second = draw(ways.texts, loaded, PROMPTS, k=2, seed=5, steps=3)
    assert torch.equal(first.images, second.images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}], ids=["32", "bf16"])
def test_equal_numbers_of_threads_give_equal_bits_and_others_nearly(
    loaded: Pipeline, threads: Any, options: dict[str, Any]
) -> None:
    made = {}
    for name, number in (("one", 1), ("two", 2), ("two again", 2)):
        threads(number)
        made[name] = draw(ways.texts, loaded, PROMPTS, k=2, seed=5, steps=3, **options).images
    assert torch.equal(made["two"], made["two again"])
    apart = 2 if not options else 40
    difference = (to_uint8(made["one"]).int() - to_uint8(made["two"]).int()).abs()
    assert difference.max() <= apart


def test_another_batch_size_changes_the_last_bits_at_most(loaded: Pipeline) -> None:
    one, three = (draw(ways.texts, loaded, PROMPTS, k=2, seed=5, steps=3, batch_size=size).images for size in (1, 3))
    assert (to_uint8(one).int() - to_uint8(three).int()).abs().max() <= 2
    other = draw(ways.texts, loaded, PROMPTS, k=2, seed=6, steps=3, batch_size=1).images
    assert (to_uint8(one).int() - to_uint8(other).int()).abs().max() > 20


def test_a_database_has_the_same_bytes_with_any_number_of_readers(tmp_path: Path, source: dict[str, Any]) -> None:
    first, *others = (
        contents(build_database(tmp_path / f"{workers}", source, ProjectionEmbedder(), workers=workers, **QUIET).path)
        for workers in (0, 1, 2)
    )
    assert len(first) == 1 + 2 * 3 and all(other == first for other in others)
