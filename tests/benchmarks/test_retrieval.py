"""The comparison of indices at a small size: it continues after it was killed, and its figures are correct."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.retrieval import DIM, KINDS, VARIED
from rdm.retrieval.index.factory import index_bytes

ROOT = Path(__file__).resolve().parents[2]
ROWS = 2000
RECALLS = [f"recall@{k}_{kind}" for k in (4, 20) for kind in KINDS]
FIGURES = {
    "rows", "way", "threads", "setting", *RECALLS, "ms_single", "ms_batch", "rss_mb", "rss_of_libraries_mb", "peak_mb",
    "build_s", "build_peak_mb", "bytes_per_row",
}  # fmt: skip


def test_a_killed_comparison_continues_and_says_what_is_true(tmp_path: Path) -> None:
    sizes = ("--sizes", str(ROWS), "--ways", "exact", "ours", "--ram", "2MB", "--threads", "1")  # a budget for codes
    command = [sys.executable, "-m", "benchmarks.retrieval", *sizes, "--folder", str(tmp_path)]
    built = tmp_path / str(ROWS)
    with (tmp_path / "said.txt").open("w") as said:
        killed = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        give_up = time.monotonic() + 300
        while not (built / "exact.json").is_file() and killed.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -9, (tmp_path / "said.txt").read_text()
    kept = [built / name for name in ("database/database.json", "truth.npz", "exact.json")]
    assert not (built / "ours.json").exists()
    times = [file.stat().st_mtime_ns for file in kept]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [file.stat().st_mtime_ns for file in kept] == times

    printed, picture = done.stdout.splitlines()[:-1], done.stdout.splitlines()[-1]
    assert (tmp_path / "retrieval.jsonl").read_text().splitlines() == printed
    lines: list[dict[str, Any]] = [json.loads(line) for line in printed]
    assert [line["way"] for line in lines] == ["exact", *["ours"] * len(VARIED)]
    for place, line in enumerate(lines):
        assert line.keys() == FIGURES | ({"ms_cold"} if place < 2 else set())  # once a way
        assert (line["rows"], line["threads"]) == (ROWS, 1)
        assert all(line[name] > 0 for name in FIGURES if name.startswith(("ms", "rss", "peak", "build")))
    exact, ours = lines[:2]
    assert [exact[name] for name in RECALLS] == [1] * 6
    assert exact["setting"] == "Flat" and exact["bytes_per_row"] == pytest.approx(4 * DIM, rel=0.01)
    factory = "OPQ64_256,IVF32,PQ64x4fs"
    assert ours["setting"].startswith(f"{factory}, nprobe ")
    assert ours["bytes_per_row"] == pytest.approx(index_bytes(factory, ROWS, DIM) / ROWS, rel=0.1)
    assert all((0.5 if "loose" in name else 0.9) <= ours[name] <= 1 for name in RECALLS)
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
