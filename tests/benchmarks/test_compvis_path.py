"""The path of a released model at a small size: files are written, checked, imported, searched, sampled, removed."""

import json
import subprocess
import sys
from pathlib import Path

from toy import ROOT, rdm_config

from benchmarks.compvis import MODELS
from ldm.config import write_config
from ldm.files import located


def test_the_whole_path_of_a_small_model(tmp_path: Path) -> None:
    config = rdm_config(tmp_path)
    unet = config["model"]["params"]["unet_config"]["params"]
    unet["context_dim"] = 256  # of the shipped CLIP
    write_config(tmp_path / "place/config.yaml", config)
    options = ["--rows", "3000", "--steps", "3", "--threads", "1", "--precisions", "32"]
    given = ["--place", str(tmp_path / "place"), "--clip", str(ROOT / "models/clip/emoji")]
    command = [sys.executable, "-m", "benchmarks.compvis", "--folder", str(tmp_path / "work"), *options, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line["phase"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ["compute", "write", "check", "database", "draw"] and not (tmp_path / "work").exists()
    said = "\n".join(found["check"]["says"])
    assert "U-Net of 32 channels" in said and "that only training needs" in said and "fits: " in said
    assert found["database"]["rows"] == 3000 and found["database"]["index"] == "Flat"
    drawn = found["draw"]
    assert drawn["size"] == [16, 16] and drawn["steps"] == 3 and 0 < 3 * drawn["step_s"] < 2 * drawn["image_s"]
    assert found["write"]["file_gb"] * 1e9 > 3 * sum(4 * 32 * 32 * 9 for _ in range(2))  # weights and both moments
    assert 0 < drawn["held_gb"] <= drawn["load_peak_gb"]


def test_every_model_has_its_place() -> None:
    for place, *_ in MODELS.values():
        assert (located(place) / "config.yaml").is_file()
