"""Plans of builds: they come back from their file, and a damaged file is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pictures import ProjectionEmbedder

from ldm.util import instantiate_from_config
from rdm.retrieval.builder.plan import Plan, WrittenShard, new_plan
from rdm.retrieval.patches.policy import Patches


@pytest.fixture
def plan(source: dict[str, Any]) -> Plan:
    return new_plan(source, instantiate_from_config(source), Patches(None), ProjectionEmbedder(), 8)


def fault(item: int) -> dict[str, Any]:
    return {"item": item, "uri": f"{item}.png", "reason": "damaged"}


def test_a_plan_comes_back_from_its_file(tmp_path: Path, plan: Plan, source: dict[str, Any]) -> None:
    plan.write(tmp_path / "build.json")
    keys = ["format", "embedder", "dim", "source", "items", "shard_rows", "patches", "columns", "first"]
    keys += ["next", "shards", "without", "unreadable"]
    assert list(json.loads((tmp_path / "build.json").read_text())) == keys  # those of an append are left out
    assert Plan.from_file(tmp_path / "build.json") == plan
    images = instantiate_from_config(source)
    append = {"items": 3, "first": 4, "ids": "a", "base": "b"}
    appended = new_plan(source, images, Patches(None), ProjectionEmbedder(), 8, **append)
    appended.write(tmp_path / "append.json")
    content = json.loads((tmp_path / "append.json").read_text())
    assert {key: content[key] for key in append} == append and list(content)[8:11] == ["first", "ids", "base"]
    assert Plan.from_file(tmp_path / "append.json") == appended


def test_shards_are_noted_and_forgotten(plan: Plan) -> None:
    assert plan.ranges() == [(0, 8), (8, 16), (16, 19)]
    plan.note(8, WrittenShard({"name": plan.shard_name(0), "rows": 7}, [fault(3)], 0))
    plan.note(16, WrittenShard(None, [fault(9), fault(8)], 2))
    assert [entry["item"] for entry in plan.unreadable] == [3, 8, 9] and (plan.without, plan.next) == (2, 16)
    assert plan.ranges() == [(16, 19)] and [shard["name"] for shard in plan.shards] == ["00000"]
    plan.cut_before(0)
    assert (plan.next, plan.shards) == (0, [])
    assert [entry["item"] for entry in plan.all_unreadable([fault(3)])] == [3, 8, 9]


@pytest.mark.parametrize(("wrong", "named"), [({"next": None, "colour": 1}, "'colour'"), ({"dim": None}, "no 'dim'")])
def test_a_damaged_plan_is_named(tmp_path: Path, plan: Plan, wrong: dict[str, Any], named: str) -> None:
    file = tmp_path / "build.json"
    plan.write(file)
    content = {**json.loads(file.read_text()), **wrong}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ValueError, match=f"build.json .*{named}.*delete"):
        Plan.from_file(file)
