"""Runs the commands of the README and of the pages in docs/, shrunk to a few steps, in a folder of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Commands
from documents import PAGES, ROOT, RUN, blocks, commands
from PIL import Image

from ldm.checkpoint import read_weights

TRAIN = [
    "lightning.trainer.max_steps=2",
    "lightning.trainer.limit_val_batches=1",
    "lightning.trainer.precision=32",  # bfloat16 takes ten times as long on processors without it
    "data.params.batch_size=16",
]
TRAIN += ["lightning.trainer.val_check_interval=2", "lightning.checkpoint.every_n_train_steps=2"]
SMALLER = {
    "configs/first_stage/emoji-vq-f4.yaml": [
        "model.params.warm_up_steps=1",
        "model.params.lossconfig.params.disc_start=1",
    ],
    "configs/rdm.yaml": ["lightning.callbacks.images.params.max_images=2"],
    "configs/rdm/emoji-embeddings.yaml": ["lightning.callbacks.images.params.max_images=2"],
}
FEWER = {
    "reconstruction": ["--n", "16", "--outdir", "outputs/evaluate"],
    "samples": ["--n", "16", "--steps", "3"],
    "memorisation": ["--n", "4", "--n_real", "16", "--steps", "3"],
    "concepts": ["--n", "4", "--n_real", "16", "--steps", "3"],
}
# The pictures of one style: those of all eleven take nine times as long.
PICTURES = "data/emoji/openmoji-line.parquet"  # which the README builds a database of
# Pages whose commands build on one another; the others go without what these have run.
TOGETHER = ("README.md", "docs/databases.md", "docs/checkpoints.md", "docs/compvis.md")
SAMPLING = ("README.md", "docs/start.md", "docs/sampling.md")  # whose Python goes with the shipped model


def unseen(page: str, others: list[list[str]]) -> list[list[str]]:
    """The commands of a page that are not among others."""
    return [command for command in commands(page) if command not in others]


def parts() -> dict[str, list[list[str]]]:
    """The commands of the pages in parts that need nothing of one another, by what each begins with.

    A part begins at the README's first command and, as sampling takes the shipped model, at every training.
    """
    first, *others = [commands(page) for page in TOGETHER]
    begins = next(place for place, command in enumerate(first) if command[0] == "main.py")
    first = [
        *first[:begins],
        *unseen("docs/start.md", first),
        *first[begins:],
    ]  # its README commands build what it takes
    together = [*first, *(command for page in others for command in page)]
    found: list[list[list[str]]] = [[]]
    for command in [*together, *unseen("docs/training.md", together), *commands("docs/evaluation.md")]:
        if command[0] == "main.py" or command[:2] == ["scripts/evaluate.py", "samples"]:
            found.append([])
        found[-1].append(command)
    return {part[0][part[0].index("--base") + 1 if "--base" in part[0] else 0]: part for part in found}


def shrink(command: list[str], folder: Path) -> list[str]:
    """The same command with little to do."""
    exported = "emoji-embeddings" if command[0] == "scripts/export_checkpoint.py" else "rdm"
    stage = "emoji-vq-f4" if "models/first_stage/mine" in command else exported
    runs = sorted((folder / "logs").glob(f"*_{stage}"))
    words = [str(runs[-1]) if word == "logs/RUN" else word for word in command]
    if words[0] == "main.py":
        return words + TRAIN + SMALLER.get(words[words.index("--base") + 1], [])
    if words[0] in ("scripts/txt2img.py", "scripts/class2img.py", "scripts/sample.py"):
        return [*words, "--n_samples", "2", "--steps", "3"]
    if words[0] == "scripts/edit.py":
        return [*words, "--steps", "3"]
    if words[0] == "scripts/evaluate.py":
        return [*words, *FEWER.get(words[1], [])]
    return words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place like the checkout, whose runs and databases are its own."""
    for name in ("main.py", "scripts", "configs", PICTURES, "docs", "models/clip", "models/judge", "models/rarm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    for kind in ("first_stage", "rdm"):
        (tmp_path / "models" / kind).mkdir()
        for file in (ROOT / "models" / kind).iterdir():
            (tmp_path / "models" / kind / file.name).symlink_to(file)
    return tmp_path


@pytest.fixture(scope="module")
def process() -> Iterator[Commands]:
    """The process whose forks run the commands."""
    with Commands() as started:
        yield started


def run(process: Commands, found: list[list[str]], folder: Path) -> None:
    """Runs commands one after another."""
    for command in found:
        code, said = process.run(shrink(command, folder), folder)
        assert code == 0, f"{command}: {said[-2000:]}"


def run_program(process: Commands, blocks: list[str], sizes: list[tuple[int, int]], folder: Path) -> None:
    """Runs blocks of Python as one program, whose images have to be of these sizes."""
    check = f"assert [image.size for image in images] == {sizes}, images"
    (folder / "program.py").write_text("\n".join([*blocks, check, ""]))
    run(process, [["program.py"]], folder)


def exported_run(folder: Path) -> Path:
    """The checkpoint of the run that the pages export."""
    return next((folder / "logs").glob("*_emoji-embeddings")) / "checkpoints/last.ckpt"


def test_the_pages_have_commands_of_every_script_to_run() -> None:
    found = {command[0] for page in PAGES for command in commands(page)}
    scripts = {f"scripts/{file.name}" for file in (ROOT / "scripts").glob("*.py")}
    assert found == {"main.py", *scripts} - {
        "scripts/demo.py",
        "scripts/web.py",
        "scripts/own.py",
    }  # which have tests of their own
    assert not commands("docs/sampling.md")  # the gallery runs what is shown there


def test_the_parts_are_all_commands() -> None:
    found = [command for part in parts().values() for command in part]
    assert all(command in found for page in RUN for command in commands(page))
    begun = ["configs/rdm.yaml", "configs/rdm/emoji-embeddings.yaml", "configs/clip/emoji.yaml", next(iter(SMALLER))]
    assert list(parts()) == ["scripts/txt2img.py", *begun, "scripts/evaluate.py"]


def test_sampling_does_what_the_pages_say(process: Commands, folder: Path) -> None:
    """With the shipped model, as there is no run yet."""
    run(process, parts()["scripts/txt2img.py"], folder)
    for name in ("txt2img", "class2img", "sample"):
        assert Image.open(folder / f"outputs/{name}/{name}-001.png").size == (64, 64)
        grid = Image.open(folder / f"outputs/{name}/{name}-grid.png")
        assert grid.size == (2 + 3 * 66, 2 + 2 * 66)  # two rows: a sample and two neighbours
        assert json.loads((folder / f"outputs/{name}/{name}.json").read_text())["checkpoint"].startswith(
            "models/rdm/emoji"
        )
    first, again = (folder / f"outputs/sample/{name}-000.png" for name in ("sample", "again"))
    assert again.read_bytes() == first.read_bytes()
    programs = [block for page in SAMPLING for block in blocks(page, "python")]
    run_program(process, programs, [(64, 64)] * 4, folder)


def test_images_of_the_shipped_models_are_made_again(process: Commands, folder: Path) -> None:
    """From their records, with all pictures."""
    for file in (ROOT / "data/emoji").glob("*.parquet"):
        if not (folder / "data/emoji" / file.name).exists():
            (folder / "data/emoji" / file.name).symlink_to(file)
    for image in sorted((ROOT / "tests/records").glob("*.png")):
        made = folder / "outputs" / image.stem
        run(process, [["scripts/sample.py", "--from-image", str(image), "--outdir", str(made)]], folder)
        before, after = (np.asarray(Image.open(file)).astype(int) for file in (image, made / "again-000.png"))
        # Equal to the bit on a processor of the same kind; another one rounds otherwise.
        assert (abs(after - before) <= 2).mean() > 0.99, image.stem


def test_training_and_exports_do_what_the_pages_say(process: Commands, folder: Path) -> None:
    run(process, parts()["configs/rdm.yaml"], folder)
    run(process, parts()["configs/rdm/emoji-embeddings.yaml"], folder)
    programs = [*blocks("README.md", "python"), *blocks("docs/checkpoints.md", "python")]
    run_program(process, programs, [(64, 64)] * 2, folder)  # of the run, and of its export
    assert read_weights(folder / "exported/compvis/model.ckpt").keys() > {"betas", "unconditional_guidance_vex"}
    ours, back = (read_weights(file) for file in (exported_run(folder), folder / "models/rdm/mine/model.safetensors"))
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(ours["model_ema." + name.removeprefix("model.").replace(".", "")], back[name])
    assert (folder / "data/databases/emoji/neighbours/train/neighbours.npy").is_file()


def test_a_clip_is_trained_as_the_pages_say(process: Commands, folder: Path) -> None:
    run(process, parts()["configs/clip/emoji.yaml"], folder)
    assert len(list((folder / "logs").glob("*_emoji/open_clip/open_clip_model.safetensors"))) == 1


def test_a_first_stage_is_trained_and_evaluated_as_the_pages_say(process: Commands, folder: Path) -> None:
    run(process, parts()["configs/first_stage/emoji-vq-f4.yaml"], folder)
    assert json.loads((folder / "outputs/evaluate/results.json").read_text())["figures"]["psnr"] > 0
    assert (folder / "models/first_stage/mine/model.safetensors").stat().st_size > 1e6


def test_models_are_evaluated_as_the_pages_say(process: Commands, folder: Path) -> None:
    run(process, parts()["scripts/evaluate.py"], folder)  # `repeat` fails where a figure differs
    for name in ("samples", "memorisation", "concepts"):
        assert json.loads((folder / "outputs" / name / "results.json").read_text())["figures"], name
    repeated = json.loads((folder / "outputs/samples/repeat/results.json").read_text())["repeated"]
    assert repeated and all(figure["equal"] for figure in repeated.values())
