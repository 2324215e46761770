"""Tables that are filled a batch at a time: a stopped one continues, one of another plan begins anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import contents

from ldm.table import ResumableTable

LINES = np.arange(30, dtype=np.int32).reshape(10, 3)
NAMES = np.arange(10, dtype=np.uint16)[:, None]


def fill(path: Path, stop: int = 10, plan: dict[str, Any] | None = None, finish: bool = True) -> int:
    """Fills a table of two arrays by four lines at a time up to `stop`; returns where it began."""
    table = ResumableTable(path, 10, plan or {"of": "numbers"})
    begun = table.done
    for start in range(begun, stop, 4):
        table.append(lines=LINES[start : start + 4], names=NAMES[start : start + 4])
    if finish:
        table.finish("card.json", {"sha256": table.hashes()})
    return begun


def test_a_stopped_table_continues_to_the_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    assert fill(tmp_path / "parts", 8, finish=False) == 0
    assert json.loads((tmp_path / "parts/build.json").read_text()) == {"of": "numbers", "done": 8}
    assert not (tmp_path / "parts/card.json").exists()
    assert fill(tmp_path / "parts") == 8
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert sorted(contents(tmp_path / "parts")) == ["card.json", "lines.npy", "names.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "parts/lines.npy"), LINES)
    assert np.load(tmp_path / "parts/names.npy").dtype == np.uint16


def test_one_of_another_plan_begins_anew_and_replaces_the_earlier(tmp_path: Path) -> None:
    fill(tmp_path)
    earlier = (tmp_path / "lines.npy").read_bytes()
    assert fill(tmp_path, 4, {"of": "letters"}, finish=False) == 0
    assert (tmp_path / "lines.npy").read_bytes() == earlier and (tmp_path / "card.json").is_file()
    (tmp_path / "left.partial.npy").touch()
    assert fill(tmp_path, plan={"of": "words"}) == 0
    assert sorted(contents(tmp_path)) == ["card.json", "lines.npy", "names.npy"]


def test_what_is_not_complete_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 of 10 lines"):
        fill(tmp_path, 4)
    assert not (tmp_path / "card.json").exists() and fill(tmp_path) == 4
    with pytest.raises(ValueError, match="got 0 items"):
        ResumableTable(tmp_path, 0, {})
