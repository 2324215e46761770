"""The figures of a CLIP: prompts of a colour and a thing, and a whole measurement of the shipped model."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.clip import colour_and_thing, measure, read_prompts, rounded
from ldm.data import ParquetImages
from ldm.data.colours import COLOURS, dominant_colours
from rdm.models.captions import facts_of

ROOT = Path(__file__).parents[2]


def test_a_hit_has_the_colour_and_is_the_thing() -> None:
    kinds = [("red apple", ("red",)), ("red apple", ("black",)), ("red car", ("red", "blue")), ("bus", ("blue",))]
    items = [{"caption": name, "keywords": "vehicle", "colours": colours} for name, colours in kinds]
    figures = colour_and_thing(
        [[0, 1], [2, 3], [0, 3]], items, [("red", "apple"), ("blue", "vehicle"), ("pink", "car")]
    )
    assert figures["colour"] == pytest.approx(3 / 6)
    assert figures["thing"] == pytest.approx(4 / 6)
    assert figures["both"] == pytest.approx(3 / 6)
    assert figures["never both"] == ["pink car"]


def test_the_shipped_pictures_can_answer_every_prompt() -> None:
    """At least four pictures are both the colour and the thing, and more are the thing in another colour."""
    prompts = read_prompts()
    assert len(set(prompts)) == 50 and {colour for colour, _ in prompts} <= set(COLOURS)
    images = ParquetImages(files=str(ROOT / "data" / "emoji"), size=64)
    things = {thing for _, thing in prompts}
    rows = [i for i in range(len(images)) if {f"word:{thing}" for thing in things} & facts_of(images.metadata(i), ())]
    both: Counter[tuple[str, str]] = Counter()
    alone: Counter[str] = Counter()
    for start in range(0, len(rows), 128):
        items = [images[i] for i in rows[start : start + 128]]
        for item, colours in zip(items, dominant_colours(torch.stack([i["image"] for i in items])), strict=True):
            words = [thing for thing in things if f"word:{thing}" in facts_of(item, ())]
            alone.update(words)
            both.update((colour, thing) for colour in colours for thing in words)
    assert [prompt for prompt in prompts if both[prompt] < 4] == []
    assert [(colour, thing) for colour, thing in prompts if both[colour, thing] > 0.7 * alone[thing]] == []


def test_figures_of_the_shipped_model_on_some_pictures(tmp_path: Path) -> None:
    table = pq.read_table(ROOT / "data" / "emoji" / "noto.parquet")
    pq.write_table(table.slice(0, 300), tmp_path / "some.parquet")
    figures = measure(str(ROOT / "models" / "clip" / "emoji"), [str(tmp_path)], every=10)
    assert (figures["pictures"], figures["names"]) == (300, 300) and 15 < figures["held out"] < 50
    assert 0.7 < figures["recall@5"] == pytest.approx(figures["recall@5 by style"]["noto"])
    assert figures["recall@1"] < figures["recall@5"] and figures["style_accuracy"] == 1.0
    prompts = figures["first 4 of 50 prompts"]
    assert 0.02 < prompts["both"] <= min(prompts["colour"], prompts["thing"]) < 1


def test_rounding_goes_into_dictionaries() -> None:
    assert rounded({"a": 0.12345, "b": {"c": 1.9999, "d": "x"}, "e": 3}) == {
        "a": 0.123,
        "b": {"c": 2.0, "d": "x"},
        "e": 3,
    }
