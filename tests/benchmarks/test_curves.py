"""The loss curve of a run, also of a run that was killed and resumed."""

import os
from pathlib import Path

import pytest

from benchmarks.curves import draw, history


def write(file: Path, rows: list[str], when: int) -> None:
    file.write_text("\n".join(["epoch,step,train/loss,val/loss_ema", *rows]) + "\n")
    os.utime(file, (when, when))


def test_a_resumed_run_counts_from_where_it_went_on(tmp_path: Path) -> None:
    write(tmp_path / "metrics-0.csv", ["0,9,1.0,", "0,9,,0.5", "0,19,0.8,", "0,29,0.7,"], when=1)
    write(tmp_path / "metrics.csv", ["0,19,0.6,", "1,39,0.4,", "1,39,,0.2"], when=2)
    assert history(tmp_path, "train/loss") == {9: 1.0, 19: 0.6, 39: 0.4}
    assert history(tmp_path, "val/loss_ema") == {9: 0.5, 39: 0.2}


def test_wrong_folders_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        history(tmp_path, "train/loss")
    write(tmp_path / "metrics.csv", ["0,9,1.0,"], when=1)
    with pytest.raises(ValueError, match="val/loss_ema"):
        history(tmp_path, "val/loss_ema")


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", [f"0,{step},{1 / step},{0.5 / step}" for step in range(9, 600, 10)], when=1)
    draw({"a": tmp_path}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
