"""A split by the hash of the id."""

import hashlib
from pathlib import Path

import pytest
from pictures import write_pictures

from ldm.data.split import HashSplit, is_held_out


def parts(images: dict, every: int) -> tuple[list[str], list[str]]:
    splits = [HashSplit(images, held_out=held_out, every=every) for held_out in (False, True)]
    kept, held = ([split.metadata(i)["id"] for i in range(len(split))] for split in splits)
    return kept, held


def test_is_held_out_is_the_rule_in_the_docstring() -> None:
    for name in ("noto/1f98b", "a", "ü"):
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
        assert is_held_out(name, 3) == (digest % 3 == 0)
    assert 80 < sum(is_held_out(str(i), 10) for i in range(1000)) < 120


def test_parts_are_disjoint_complete_and_stay_when_images_are_added(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, 30)
    kept, held = parts(images, 3)
    assert len(kept) + len(held) == 30 and len(set(kept + held)) == 30
    assert held and all(is_held_out(name, 3) for name in held)
    write_pictures(tmp_path, 40)
    more_kept, more_held = parts(images, 3)
    assert set(kept) < set(more_kept) and set(held) <= set(more_held)


def test_items_are_those_of_the_images(tmp_path: Path) -> None:
    split = HashSplit(write_pictures(tmp_path, 12), held_out=False, every=2)
    assert split[0]["id"] == split.metadata(0)["id"]
    assert split[0]["image"].shape == (3, 8, 8)
    with pytest.raises(ValueError, match="every.* 1.* 2"):
        HashSplit(write_pictures(tmp_path, 2), held_out=True, every=1)
