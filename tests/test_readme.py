"""Runs the README's commands, shrunk to a few steps, in a folder of their own."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.checkpoint import read_weights

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [
    "lightning.trainer.max_steps=2",
    "lightning.trainer.limit_val_batches=1",
    "data.params.batch_size=16",
]
TRAIN += ["lightning.trainer.val_check_interval=2", "lightning.checkpoint.every_n_train_steps=2"]
SMALLER = {
    "configs/first_stage/emoji-vq-f4.yaml": [
        "model.params.warm_up_steps=1",
        "model.params.lossconfig.params.disc_start=1",
    ],
    "configs/rdm.yaml": ["lightning.callbacks.images.params.max_images=2"],
}


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def commands() -> list[list[str]]:
    """Every line that starts with ``python`` in the README's code blocks."""
    lines = [line.partition("  #")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("python ")]


def shrink(command: list[str], folder: Path) -> list[str]:
    """The same command with little to do."""
    stage = "emoji-vq-f4" if "models/first_stage/mine" in command else "rdm"
    runs = sorted((folder / "logs").glob(f"*_{stage}"))
    words = [str(runs[-1]) if word == "logs/RUN" else word for word in command]
    if words[0] == "main.py":
        return words + TRAIN + SMALLER.get(words[words.index("--base") + 1], [])
    if words[0] in ("scripts/txt2img.py", "scripts/class2img.py", "scripts/sample.py"):
        return [*words, "--n_samples", "2", "--steps", "3"]
    if words[0] == "scripts/edit.py":
        return [*words, "--steps", "3"]
    if words[0] == "scripts/evaluate.py":
        return [*words, "--n", "16", "--outdir", str(folder / "outputs/evaluate")]
    return words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place like the checkout, whose runs and databases are its own."""
    for name in ("main.py", "scripts", "configs", "data/emoji", "models/clip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    for kind in ("first_stage", "rdm"):
        (tmp_path / "models" / kind).mkdir()
        for file in (ROOT / "models" / kind).iterdir():
            (tmp_path / "models" / kind / file.name).symlink_to(file)
    return tmp_path


def exported_run(folder: Path) -> Path:
    """The checkpoint of the run that the README exports."""
    return next((folder / "logs").glob("*_rdm")) / "checkpoints/last.ckpt"


def test_commands_do_what_the_readme_says(folder: Path) -> None:
    found = commands()
    assert {command[0] for command in found} == {"main.py"} | {
        f"scripts/{name}.py"
        for name in (
            "txt2img",
            "class2img",
            "sample",
            "edit",
            "export_checkpoint",
            "build_database",
            "search_neighbors",
            "evaluate",
        )
    }
    for command in found:  # sampling comes before any training, so it takes the shipped model
        done = subprocess.run(
            [sys.executable, *shrink(command, folder)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    (python,) = blocks("python")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{python}\nprint([image.size for image in images])"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[(64, 64), (64, 64)]"], done.stderr[-2000:]
    for name in ("txt2img", "class2img", "sample"):
        assert Image.open(folder / f"outputs/{name}/{name}-001.png").size == (64, 64)
        grid = Image.open(folder / f"outputs/{name}/{name}-grid.png")
        assert grid.size == (2 + 5 * 66, 2 + 2 * 66)  # two rows: a sample and four neighbours
        assert json.loads((folder / f"outputs/{name}/{name}.json").read_text())["checkpoint"].startswith(
            "models/rdm/emoji"
        )
    first, again = (folder / f"outputs/sample/{name}-000.png" for name in ("sample", "again"))
    assert again.read_bytes() == first.read_bytes()
    assert json.loads((folder / "outputs/evaluate/results.json").read_text())["figures"]["psnr"] > 0
    assert (folder / "models/first_stage/mine/model.safetensors").stat().st_size > 1e6
    assert read_weights(folder / "exported/compvis/model.ckpt").keys() > {"betas", "unconditional_guidance_vex"}
    ours, back = (read_weights(file) for file in (exported_run(folder), folder / "models/rdm/mine/model.safetensors"))
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(ours["model_ema." + name.removeprefix("model.").replace(".", "")], back[name])
    assert (folder / "data/databases/emoji/neighbours/train/neighbours.npy").is_file()
    assert len(list((folder / "logs").glob("*_emoji/open_clip/open_clip_model.safetensors"))) == 1
