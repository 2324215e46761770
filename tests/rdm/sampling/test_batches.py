"""Images are written as they are sampled: what is stopped leaves them, and memory does not grow with the request."""

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import small_files
from PIL import Image

from ldm.pictures import image_grid, to_uint8
from ldm.stopping import Stopped, handled, stop_at_once
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import read_record, save
from rdm.sampling.samples import Samples, joined, sample, sample_batches
from rdm.sampling.settings import Settings
from rdm.sampling.sheet import GAP, ROWS

PROMPTS = [f"flag {number}" for number in range(5)]


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 2}, {"batch_size": 2, "best_of": 3}, {"copy_threshold": 0.1, "reject_copies": 2}]
)
def test_batches_are_the_images_of_the_whole(loaded: Pipeline, options: dict[str, Any]) -> None:
    request, settings = ways.texts(loaded, PROMPTS, tokens="both"), Settings.of(steps=2, **options)
    whole, parts = sample(loaded, request, settings), list(sample_batches(loaded, request, settings))
    assert [len(part.seeds) for part in parts] == ([2, 2, 1] if "batch_size" in options else [1] * 5)
    again = joined(request, parts)
    assert torch.equal(again.images, whole.images)
    assert (again.seeds, again.copies, again.candidates) == (whole.seeds, whole.copies, whole.candidates)
    assert [label for part in parts for label in part.request.labels] == PROMPTS
    alone = sample(loaded, request.part([3]), settings)
    assert torch.allclose(alone.images[0], whole.images[3], atol=1e-4) and alone.request.prompts == [PROMPTS[3]]


def test_files_are_those_of_images_that_are_saved_together(loaded: Pipeline, tmp_path: Path) -> None:
    request, settings = ways.texts(loaded, PROMPTS), Settings.of(steps=2, batch_size=2)
    for per_row in (None, 2):
        save(sample(loaded, request, settings), loaded, tmp_path / f"whole{per_row}", "a", per_row=per_row)
        save(sample_batches(loaded, request, settings), loaded, tmp_path / f"parts{per_row}", "a", per_row=per_row)
        files = sorted(file.name for file in (tmp_path / f"whole{per_row}").iterdir())
        assert len(files) == 5 + 2
        for name in files:
            one, other = ((tmp_path / f"{kind}{per_row}" / name).read_bytes() for kind in ("whole", "parts"))
            assert one == other, name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_sampled_before_a_signal_is_there(loaded: Pipeline, tmp_path: Path, number: int) -> None:
    request, settings = ways.texts(loaded, PROMPTS), Settings.of(steps=2)

    def interrupted() -> Iterator[Samples]:
        for count, part in enumerate(sample_batches(loaded, request, settings)):
            if count == 3:
                assert (tmp_path / "a-002.png").is_file()  # already before anybody stops it
                os.kill(os.getpid(), number)
            yield part

    stops = (KeyboardInterrupt, Stopped)
    with pytest.raises(stops, match=f"3 images are in {tmp_path}"), handled({signal.SIGTERM: stop_at_once}):
        save(interrupted(), loaded, tmp_path, "a")
    expected = [*(f"a-00{i}.png" for i in range(3)), "a-grid.png", "a.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    images = json.loads((tmp_path / "a.json").read_text())["images"]
    assert [image["query"] for image in images] == PROMPTS[:3]
    assert read_record(tmp_path / "a-002.png")["query"] == PROMPTS[2]
    side, _ = loaded.data.image_size
    assert Image.open(tmp_path / "a-grid.png").height == 3 * (side + GAP) + GAP


def test_what_was_sampled_before_the_disk_was_full_is_there(loaded: Pipeline, tmp_path: Path) -> None:
    request, settings = ways.texts(loaded, PROMPTS), Settings.of(steps=2)

    def until_full() -> Iterator[Samples]:
        for count, part in enumerate(sample_batches(loaded, request, settings)):
            if count < 2:
                yield part
                continue
            with small_files(100):
                yield part

    with pytest.raises(OSError, match=r"a-002\.png"):
        save(until_full(), loaded, tmp_path, "a")
    assert {"a-000.png", "a-001.png"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob(".*"))


def many(loaded: Pipeline, count: int) -> Iterator[Samples]:
    """Samples of grey pictures, one for each prompt; making real ones would take minutes."""
    request, size = ways.texts(loaded, [f"flag {number}" for number in range(8)]), loaded.data.image_size
    settings = Settings.of(steps=2, copy_threshold=None).for_model(loaded.model)
    for start in range(0, count, 8):
        places = range(min(8, count - start))
        shades = torch.linspace(-1, 1, count)[start : start + len(places)]
        images = shades[:, None, None, None].expand(-1, 3, *size).clone()
        yield Samples(images, request.part(places), settings, list(range(start, start + len(places))))


@pytest.mark.parametrize("per_row", [None, 3])
def test_a_sheet_has_so_many_rows_and_the_next_goes_on(loaded: Pipeline, tmp_path: Path, per_row: int | None) -> None:
    columns, count = per_row or 1, 2 * ROWS * (per_row or 1) + 5
    assert save(many(loaded, count), loaded, tmp_path, "a", per_row=per_row) == tmp_path / "a-grid.png"
    rows, (side, _) = [ROWS, ROWS, -(-5 // columns)], loaded.data.image_size
    files = ["a-grid.png", "a-grid-2.png", "a-grid-3.png"]
    assert sorted(path.name for path in tmp_path.glob("a-grid*")) == sorted(files)
    sheets = [np.asarray(Image.open(tmp_path / name)) for name in files]
    assert [len(each) for each in sheets] == [number * (side + GAP) + GAP for number in rows]
    shades = to_uint8(torch.linspace(-1, 1, count)).tolist()
    for number, shade in ((0, shades[0]), (1, shades[ROWS * columns]), (2, shades[2 * ROWS * columns])):
        assert sheets[number][GAP, GAP, 0] == shade
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == count


def test_memory_does_not_grow_with_the_request(loaded: Pipeline, tmp_path: Path) -> None:
    def most_pixels(count: int) -> int:
        """The most numbers that tensors of pictures held at any time."""
        most = 0

        def watched() -> Iterator[Samples]:
            nonlocal most
            for part in many(loaded, count):
                everything = gc.get_objects()
                most = max(most, sum(it.numel() for it in everything if type(it) is torch.Tensor and it.ndim == 4))
                del everything
                yield part

        save(watched(), loaded, tmp_path / str(count), "a")
        return most

    assert most_pixels(6 * ROWS) == most_pixels(2 * ROWS)


def test_edits_come_in_batches_too(loaded: Pipeline, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "red.png")
    request = edit(loaded, tmp_path / "red.png", 3, prompt="flag", strength=0.5)
    settings = Settings.of(steps=4, batch_size=2)
    whole = sample(loaded, request, settings)
    assert torch.equal(joined(request, list(sample_batches(loaded, request, settings))).images, whole.images)
    save(sample_batches(loaded, request, settings), loaded, tmp_path / "out", "edit")
    assert (tmp_path / "out" / "edit-002.png").is_file()


def test_a_grid_of_pictures_is_that_of_its_rows() -> None:
    images = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = image_grid({"a": images, "b": -images})
    rows = [image_grid({"a": images[i : i + 1], "b": -images[i : i + 1]}) for i in range(5)]
    assert torch.equal(torch.cat([rows[0][:, :2], *(row[:, 2:] for row in rows)], dim=1), whole)
