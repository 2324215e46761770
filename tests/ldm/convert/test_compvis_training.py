"""CompVis' training configs: what works under CompVis' names, and what is named in place of the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures
from small_models import IDENTITY, unet

import main
from ldm.config import read_run_config, write_config
from ldm.convert.lightning import our_lightning
from ldm.data import ImageFolder
from ldm.data.imagenet import ImageNetTrain, ImageNetValidation
from ldm.run import read_class_names
from ldm.util import get_obj_from_str, instantiate_from_config

CIN = """
model:
  base_learning_rate: 1.0e-06
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.0015
    linear_end: 0.0195
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 20
    first_stage_key: image
    cond_stage_key: class_label
    image_size: 8
    channels: 3
    cond_stage_trainable: true
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scheduler_config:
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params: {warm_up_steps: [10000], cycle_lengths: [10000000000000], f_start: [1.e-6], f_max: [1.], f_min: [1.]}
    cond_stage_config:
      target: ldm.modules.encoders.modules.ClassEmbedder
      params: {embed_dim: 8, key: class_label}
data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 2
    num_workers: 0
    wrap: false
    train:
      target: ldm.data.imagenet.ImageNetTrain
      params: {config: {size: 8}, data_root: ROOT}
    validation:
      target: ldm.data.imagenet.ImageNetValidation
      params: {config: {size: 8}, data_root: ROOT}
lightning:
  callbacks:
    image_logger:
      target: main.ImageLogger
      params: {batch_frequency: 4, max_images: 2, increase_log_steps: true}
  modelcheckpoint:
    params: {every_n_train_steps: 2, save_top_k: 3, filename: "{epoch}", save_last: true}
  trainer:
    benchmark: true
"""


def write_imagenet(root: Path) -> None:
    """Writes a training and a validation split of three classes as CompVis' code lays out ImageNet."""
    for split in ("ILSVRC2012_train", "ILSVRC2012_validation"):
        write_pictures(root / split / "data", 6, classes=3)
        (root / split / "synset_human.txt").write_text("class0 tench\nclass1 goldfish, gold fish\nclass2 shark\n")


def lists(folder: Path) -> Path:
    """Writes pictures and the list of two of them, once by absolute paths and once below the folder."""
    write_pictures(folder / "pictures", 4)
    (folder / "below.txt").write_text("class0/000.png\nclass1/001.png\n")
    paths = [folder / "pictures" / name for name in ("class0/000.png", "class1/003.png")]
    (folder / "absolute.txt").write_text("".join(f"{path}\n" for path in paths))
    return folder


def test_a_config_of_classes_trains_as_it_is(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "data")
    (tmp_path / "a.yaml").write_text(CIN.replace("ROOT", str(tmp_path / "data")))
    write_config(
        tmp_path / "networks.yaml", {"model": {"params": {"unet_config": unet(8), "first_stage_config": IDENTITY}}}
    )
    words = [
        "-b",
        str(tmp_path / "a.yaml"),
        str(tmp_path / "networks.yaml"),
        "-t",
        "--no-test",
        "-p",
        str(tmp_path / "run"),
    ]
    settings = ["lightning.trainer.max_steps=5", "lightning.trainer.accelerator=cpu"]
    main.train(main.parse([*words, *settings]))
    files = {path.name for path in (tmp_path / "run/images").iterdir()}
    assert files == {f"{step:07d}.png" for step in (1, 2, 4, 5)}  # 1 and 2 early, 4 by frequency, 5 as the last step
    kept = {path.stem for path in (tmp_path / "run/checkpoints").iterdir()}
    assert {"last", "best"} <= kept <= {"last", "best", "healthy"}
    assert read_class_names(tmp_path / "run") == ["class0", "class1", "class2"]
    config = read_run_config([tmp_path / "run/config.yaml"])
    assert config.checkpoint == {"every_n_train_steps": 2, "save_last": True}


def test_imagenet_is_read_from_its_folders(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    dataset = ImageNetTrain(data_root=str(tmp_path), config={"size": 4})
    item = dataset[1]
    assert (len(dataset), item["image"].shape) == (6, (3, 4, 4))
    assert (item["class_label"], item["human_label"], item["id"]) == (0, "tench", "class0/003.png")
    (tmp_path / "ILSVRC2012_validation/filelist.txt").write_text("class2/002.png\nclass1/001.png\n")
    listed = ImageNetValidation(data_root=str(tmp_path), config={"size": 4, "random_crop": False})
    assert [listed[i]["human_label"] for i in range(2)] == ["shark", "goldfish, gold fish"]


def test_imagenet_is_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/autoencoders/data/ILSVRC2012_train/data"):
        ImageNetTrain(config={"size": 4})
    write_imagenet(tmp_path / "autoencoders/data")
    assert len(ImageNetTrain(config={"size": 4})) == 6


@pytest.mark.parametrize(
    ("target", "listed"), [("CustomTrain", "training_images_list_file"), ("CustomTest", "test_images_list_file")]
)
def test_lists_of_files_of_taming(tmp_path: Path, target: str, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lists(tmp_path)
    params = {"size": 4, listed: str(tmp_path / "absolute.txt")}
    dataset = instantiate_from_config({"target": f"taming.data.custom.{target}", "params": params})
    plain = ImageFolder(str(tmp_path / "pictures"), 4)
    assert [bool((dataset[i]["image"] == plain[j]["image"]).all()) for i, j in ((0, 0), (1, 3))] == [True, True]
    monkeypatch.chdir(tmp_path / "pictures")
    params[listed] = str(tmp_path / "below.txt")
    relative = instantiate_from_config({"target": f"taming.data.custom.{target}", "params": params})
    assert [relative[i]["id"] for i in range(2)] == ["class0/000.png", "class1/001.png"]


@pytest.mark.parametrize(
    ("target", "folder", "listed"),
    [
        ("ldm.data.lsun.LSUNBedroomsTrain", "data/lsun/bedrooms", "data/lsun/bedrooms_train.txt"),
        ("ldm.data.lsun.LSUNBedroomsValidation", "data/lsun/bedrooms", "data/lsun/bedrooms_val.txt"),
        ("ldm.data.lsun.LSUNChurchesTrain", "data/lsun/churches", "data/lsun/church_outdoor_train.txt"),
        ("ldm.data.lsun.LSUNChurchesValidation", "data/lsun/churches", "data/lsun/church_outdoor_val.txt"),
        ("ldm.data.lsun.LSUNCatsTrain", "data/lsun/cats", "data/lsun/cat_train.txt"),
        ("ldm.data.lsun.LSUNCatsValidation", "data/lsun/cats", "data/lsun/cat_val.txt"),
        ("taming.data.faceshq.FFHQTrain", "data/ffhq", "data/ffhqtrain.txt"),
        ("taming.data.faceshq.FFHQValidation", "data/ffhq", "data/ffhqvalidation.txt"),
    ],
)
def test_lists_in_the_places_of_compvis(
    target: str, folder: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / folder, 4)
    (tmp_path / listed).write_text("class1/001.png\nclass0/002.png\n")
    dataset = instantiate_from_config({"target": target, "params": {"size": 4}})
    assert [dataset[i]["id"] for i in range(len(dataset))] == ["class1/001.png", "class0/002.png"]
    assert dataset[0]["image"].shape == (3, 4, 4)


def test_other_places_of_lsun(tmp_path: Path) -> None:
    lists(tmp_path)
    params: dict[str, Any] = {
        "size": 4,
        "txt_file": str(tmp_path / "below.txt"),
        "data_root": str(tmp_path / "pictures"),
    }
    config = {"target": "ldm.data.lsun.LSUNBase", "params": params}
    assert len(instantiate_from_config(config)) == 2
    with pytest.raises(ValueError, match="interpolation 'linear', expected bicubic"):
        instantiate_from_config({**config, "params": {**params, "interpolation": "linear"}})
    with pytest.raises(ValueError, match="size=None"):
        instantiate_from_config({**config, "params": {**params, "size": None}})


def test_what_changes_pictures_at_random_is_said_to_have_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists(tmp_path)
    write_imagenet(tmp_path / "data")
    params = {
        "size": 4,
        "txt_file": str(tmp_path / "below.txt"),
        "data_root": str(tmp_path / "pictures"),
        "flip_p": 0.5,
    }
    instantiate_from_config({"target": "ldm.data.lsun.LSUNBase", "params": params})
    assert "LSUNBase: flip_p=0.5 has no effect" in caplog.text
    params = {"size": 4, "degradation": "pil_nearest", "data_root": str(tmp_path / "data")}
    assert len(instantiate_from_config({"target": "ldm.data.imagenet.ImageNetSRTrain", "params": params})) == 6
    assert "degradation=pil_nearest" in caplog.text


@pytest.mark.parametrize(
    ("target", "facts"),
    [
        ("taming.data.coco.CocoImagesAndCaptionsTrain", "'taming.data.coco.*ldm.data.ImageFolder"),
        ("taming.data.faceshq.CelebAHQTrain", "taming.data.faceshq.*ldm.data.ImageFolder"),
        ("ldm.data.openimages.FullOpenImagesTrain", "no module 'ldm.data.openimages'.*ldm.data.ImageFolder"),
        ("ldm.data.lsun.LSUNTowersTrain", "no such name in ldm.data.lsun"),
        ("taming.modules.losses.nothing.Loss", "no module 'taming"),
    ],
)
def test_other_data_sets_are_named_with_ours(target: str, facts: str) -> None:
    with pytest.raises(ValueError, match=facts):
        get_obj_from_str(target)


def test_a_module_that_lacks_a_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taming/data").mkdir(parents=True)
    for name in ("taming/__init__.py", "taming/data/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "taming/data/old.py").write_text("from torch._six import string_classes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("taming")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="taming.data.old.Train.*torch._six.*ldm.data.ImageFolder"):
        get_obj_from_str("taming.data.old.Train")


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"sub_indices": "0-10"}, "sub_indices.*classes: "),
        ({"sise": 3}, "'sise'.*'size'"),
        ({"size": None}, "size=None"),
    ],
)
def test_parts_of_imagenet_are_named(params: dict[str, Any], facts: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=facts):
        ImageNetTrain(data_root=str(tmp_path), config={"size": 4, **params})


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"modelcheckpoint": {"target": "x.Y", "params": {"monitor": "val/a", "period": 2, "dirpath": "d"}}},
         {"checkpoint": {"monitor": "val/a", "every_n_epochs": 2}}),
        ({"modelcheckpoint": {"params": {"every_n_train_steps": 5}}, "checkpoint": {"every_n_train_steps": 7}},
         {"checkpoint": {"every_n_train_steps": 7}}),
        ({"modelcheckpoint": None}, {"checkpoint": {}}),
        ({"trainer": {"gpus": "0,1", "distributed_backend": "ddp"}},
         {"trainer": {"strategy": "ddp", "accelerator": "gpu", "devices": [0, 1]}}),
        ({"trainer": {"gpus": 2, "accelerator": "ddp"}},
         {"trainer": {"strategy": "ddp", "accelerator": "gpu", "devices": 2}}),
        ({"trainer": {"gpus": 0, "accelerator": "cpu", "replace_sampler_ddp": False, "weights_summary": None}},
         {"trainer": {"accelerator": "cpu", "use_distributed_sampler": False}}),
        ({"trainer": {"benchmark": True, "accumulate_grad_batches": 2}},
         {"trainer": {"benchmark": True, "accumulate_grad_batches": 2}}),
    ],
)  # fmt: skip
def test_the_section_lightning_in_our_terms(section: dict[str, Any], expected: dict[str, Any]) -> None:
    assert our_lightning(section) == expected


@pytest.mark.parametrize(
    ("section", "facts"),
    [
        ({"strategy": {"target": "x"}}, "lightning.strategy.*lightning.trainer.strategy"),
        ({"trainer": {"resume_from_checkpoint": "a.ckpt"}}, "resume_from_checkpoint.*--resume"),
        ({"modelcheckpoint": "x"}, "lightning.modelcheckpoint: got 'x'"),
    ],
)
def test_what_takes_the_place_of_other_keys_is_named(section: dict[str, Any], facts: str, tmp_path: Path) -> None:
    write_config(tmp_path / "a.yaml", {"model": {}, "data": {}, "lightning": section})
    with pytest.raises(ValueError, match=facts):
        read_run_config([tmp_path / "a.yaml"])


def test_the_loader_takes_compvis_arguments(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 4)
    params = {"batch_size": 2, "wrap": True, "num_workers": None, "train": pictures, "use_worker_init_fn": True}
    data = instantiate_from_config({"target": "main.DataModuleFromConfig", "params": params})
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 8, 8)
    for more, facts in (({"predict": pictures}, "predict.*test"), ({"warp": True}, "'warp'.*'wrap'")):
        with pytest.raises(ValueError, match=facts):
            instantiate_from_config({"target": "main.DataModuleFromConfig", "params": {**params, **more}})


@pytest.mark.parametrize(
    ("params", "due"),
    [
        ({"batch_frequency": 6, "increase_log_steps": True}, [1, 2, 4, 6, 12]),
        ({"batch_frequency": 6}, [1, 2, 4, 6, 12]),
        ({"batch_frequency": 6, "increase_log_steps": False}, [6, 12]),
        ({"batch_frequency": 6, "increase_log_steps": False, "log_first_step": True}, [1, 6, 12]),
        ({"every_n_steps": 4}, [4, 8, 12]),
    ],
)
def test_grids_are_written_at_compvis_steps(params: dict[str, Any], due: list[int]) -> None:
    logger = instantiate_from_config({"target": "main.ImageLogger", "params": {"clamp": True, **params}})
    assert [step for step in range(1, 13) if logger.is_due(step)] == due


@pytest.mark.parametrize("word", ["--max_epochs", "--accumulate_grad_batches=2", "--max-steps"])
def test_options_of_the_trainer_are_named_as_settings(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.parse(["-t", word])
    name = word.strip("-").partition("=")[0].replace("-", "_")
    assert f"give lightning.trainer.{name}=VALUE" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    root = Path(main.__file__).parent
    for words, shown in (([], False), (["--debug"], True), (["-d", "true"], True)):
        done = subprocess.run(  # noqa: S603 (our own command)
            [sys.executable, "main.py", "-b", str(tmp_path / "none.yaml"), *words],
            cwd=root, env=os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and ("Traceback" in done.stderr) == shown
        assert done.stderr.splitlines()[-1].startswith("error: no config at")
