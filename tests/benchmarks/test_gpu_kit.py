"""The measurements of a GPU run whole on a CPU with tiny sizes; what fails or takes too long is one part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from benchmarks.gpu import __main__ as kit  # noqa: E402
from benchmarks.gpu.networks import SHAPES, attention  # noqa: E402
from benchmarks.gpu.timing import Bench, attempt, tflop  # noqa: E402

TINY = Bench("cpu", tiny=True)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["gpu", "--folder", str(folder), "--device", "cpu", *words])
    kit.main()
    return json.loads((folder / "gpu.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["main.py", "tests"])
def test_trainings_and_tests_are_run(part: str) -> None:
    found = kit.PARTS[part](TINY)
    assert found.get("pictures_per_s", 1) > 0 and found.get("rc", 0) == 0


@pytest.mark.parametrize("part", [name for name in kit.PARTS if name not in ("main.py", "tests")])
def test_each_part_gives_figures_on_a_cpu(part: str) -> None:
    found = kit.PARTS[part](TINY)
    assert found and "not" not in found
    assert all("not" not in row for name, row in found.items() if isinstance(row, dict) and part in
               ("sampling", "training", "unet", "decoder")), found  # fmt: skip
    json.dumps(found)


def test_the_kernels_of_attention_agree() -> None:
    found = attention(TINY)
    assert len(found) == len(SHAPES)
    for rows in found.values():
        known = [row for row in rows.values() if "ms" in row]
        assert len(known) >= 2 and all(row["difference"] < 0.05 for row in known)


def test_parts_are_written_one_by_one_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, tmp_path, "--only", "machine")
    assert list(found) == ["machine"] and "a GPU that this torch can use" in found["machine"]["missing"][0]
    (tmp_path / "gpu.json").write_text(json.dumps({"machine": {"kept": 1}, "search": {"not": "it was not done"}}))
    found = run(monkeypatch, tmp_path, "--only", "machine", "search")
    assert found["machine"] == {"kept": 1} and found["search"]["exact, CPU"]["ms_a_query"] > 0
    assert "exact, GPU" in found["search"] and "GPUs" in found["search"]["exact, GPU"]["not"]
    assert "| search | exact, CPU | ms_a_query " in (tmp_path / "gpu.md").read_text()


def test_a_part_that_takes_too_long_or_ends_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kit.measured("machine", 0.01, "cpu") == {"not": "it was not done after 0 s"}
    assert "not" in kit.measured("no such part", 60, "cpu")
    found = run(monkeypatch, tmp_path, "--only", "machine", "--minutes", "1", "--again")
    assert "torch" in found["machine"]
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(sys, "argv", ["gpu", "--folder", str(tmp_path / "none"), "--minutes", "0"])
    kit.main()
    assert not (tmp_path / "none" / "gpu.json").exists()


def test_what_a_device_cannot_do_is_one_line() -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("no kernel\nfor this")

    assert attempt(fail) == {"not": "no kernel"}


def test_operations_are_counted() -> None:
    import torch

    a = torch.ones(64, 32)
    assert tflop(lambda: a @ a.T) == pytest.approx(2 * 64 * 64 * 32 / 1e12)
