"""Training on classes: all data sets number them alike, and the cond stage has a place for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures
from small_models import IDENTITY, unet

import main
from ldm.config import write_config
from ldm.run import read_class_names

ROOT = Path(__file__).parents[2]


def config(folder: Path, n_classes: int, train: dict[str, Any], validation: dict[str, Any], **params: Any) -> list[str]:
    """Writes the config of a model of classes, and returns the words that train it for two steps."""
    stage = {"embed_dim": 8, "n_classes": n_classes, "key": "class_label"}
    model = {
        "unet_config": unet(context_dim=8),
        "first_stage_config": IDENTITY,
        "timesteps": 20,
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": stage},
        "cond_stage_key": "class_label",
        "cond_stage_trainable": True,
        "conditioning_key": "crossattn",
        **params,
    }
    data = {"batch_size": 2, "train": train, "validation": validation}
    content = {
        "model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": model},
        "data": {"target": "ldm.data.DataModule", "params": data},
        "lightning": {"trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}},
    }
    write_config(folder / "a.yaml", content)
    return ["-b", str(folder / "a.yaml"), "-p", str(folder / "run")]


def test_the_classes_of_a_run_are_written(tmp_path: Path) -> None:
    train, fewer = (write_pictures(tmp_path / str(n), 6, classes=n) for n in (3, 2))
    words = config(tmp_path, 4, train, fewer, p_uncond=0.5)  # those of the smaller set have the same numbers
    main.train(main.parse([*words, "-t"]))
    assert read_class_names(tmp_path / "run") == ["class0", "class1", "class2"]


def test_data_sets_that_number_classes_differently_are_named(tmp_path: Path) -> None:
    train = write_pictures(tmp_path / "train", 6, classes=3)
    other = write_pictures(tmp_path / "val", 6, classes=3)
    (tmp_path / "val/class0").rename(tmp_path / "val/class9")
    words = config(tmp_path, 5, train, other)
    with pytest.raises(ValueError, match="number 0 for class 'class1', the training set has 1.*class_list"):
        main.train(main.parse([*words, "-t"]))
    other["params"]["class_list"] = train["params"]["class_list"] = ["class0", "class1", "class2", "class9"]
    main.train(main.parse([*config(tmp_path, 5, train, other), "-t"]))
    assert read_class_names(tmp_path / "run") == ["class0", "class1", "class2", "class9"]
    del other["params"]["class_list"]
    with pytest.raises(ValueError, match="validation has number 0 for class 'class1', the training set has 1"):
        main.train(main.parse([*config(tmp_path, 5, train, other), "-r", str(tmp_path / "run")]))


@pytest.mark.parametrize(("n_classes", "p_uncond", "needed"), [(2, 0.0, "3"), (3, 0.1, "4, of which the last")])
def test_too_few_classes_are_named(tmp_path: Path, n_classes: int, p_uncond: float, needed: str) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6, classes=3)
    words = config(tmp_path, n_classes, pictures, pictures, p_uncond=p_uncond)
    with pytest.raises(ValueError, match=f"n_classes: got {n_classes}, expected at least {needed}"):
        main.train(main.parse([*words, "-t"]))


def test_pictures_without_a_class_are_named(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6, classes=1)
    (tmp_path / "pictures/class0/000.png").rename(tmp_path / "pictures/a.png")
    with pytest.raises(ValueError, match="train has pictures without a class"):
        main.train(main.parse([*config(tmp_path, 3, pictures, pictures), "-t"]))


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"cond_stage_key": "txt"}, "cond_stage_key: got 'txt', expected an entry of the batch: image.*human_label"),
        ({"cond_stage_config.params.key": "class"}, "key: got 'class' for the class numbers.*class_label"),
        ({"p_uncond": 1.5}, "p_uncond: got 1.5"),
        ({"cond_stage_config": "__is_unconditional__", "p_uncond": 0.5}, "p_uncond: got 0.5"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, params: dict[str, Any], facts: str) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6, classes=3)
    words = config(tmp_path, 4, pictures, pictures)
    settings = [f"model.params.{name}={value}" for name, value in params.items()]
    with pytest.raises(ValueError, match=facts):
        main.train(main.parse([*words, "-t", *settings]))


@pytest.mark.parametrize("name", [None, "emoji-classes", "emoji-texts"])
def test_the_shipped_configs_train(name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = ["configs/ldm/emoji.yaml", *([f"configs/ldm/{name}.yaml"] if name else [])]
    settings = ["lightning.trainer.max_steps=1", "data.params.batch_size=2", "lightning.trainer.limit_val_batches=1"]
    settings += ["lightning.callbacks.images.params.max_images=1", "lightning.trainer.accelerator=cpu"]
    main.train(main.parse(["-b", *base, "-t", "--no-test", "-p", str(tmp_path / "run"), *settings]))
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert ("animals-nature/animal-bird" in read_class_names(tmp_path / "run")) == (name == "emoji-classes")
