"""The loss curve of a run, also of a run that was killed and resumed."""

import os
from pathlib import Path

import pytest

from ldm.curves import draw_losses, draw_run, history


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
    draw_losses({"a": tmp_path}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_run_of_any_model_is_drawn_and_one_without_losses_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ldm.curves")
    draw_run(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,val/rec_loss\n3,0.5\n")
    draw_run(tmp_path)
    assert not (tmp_path / "losses.png").exists()
    assert "no metrics" in caplog.messages[0] and "train/loss" in caplog.messages[1]
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/rec_loss\n0,-0.1,\n1,0.2,\n1,,0.5\n")
    draw_run(tmp_path)
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG") and "losses.png" in caplog.messages[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.png", "metrics.csv"]
