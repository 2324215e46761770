"""First stages of grey and of non-square pictures, trained from folders, and what does not fit in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import contents
from PIL import Image
from small_models import DDCONFIG, KL_DDCONFIG, unet

import main
from ldm.checkpoint import read_weights
from ldm.config import write_config

LOSS = {"disc_start": 0, "disc_num_layers": 1, "disc_ndf": 4}
LOSSES = {
    "VQModel": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "AutoencoderKL": "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
}


def config_of(folder: Path, kind: str = "VQModel", channels: int = 1, size: Any = 8, **loss: Any) -> dict[str, Any]:
    """The config of a first stage of grey pictures, and 16-bit slices in class folders."""
    for number in range(4):
        file = folder / "slices" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 65536, (16, 24)).astype(np.uint16)
        Image.fromarray(values).save(file)
    images = {
        "target": "ldm.data.ImageFolder",
        "params": {"root": str(folder / "slices"), "size": size, "channels": channels},
    }
    ddconfig = (DDCONFIG if kind == "VQModel" else KL_DDCONFIG) | {"in_channels": 1, "out_ch": 1}
    params: dict[str, Any] = {"ddconfig": ddconfig, "embed_dim": 3, "learning_rate": 1e-3}
    params |= {"n_embed": 8} if kind == "VQModel" else {}
    params["lossconfig"] = {"target": LOSSES[kind], "params": LOSS | loss}
    trainer = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    return {
        "model": {"target": f"ldm.models.autoencoder.{kind}", "params": params},
        "data": {"target": "ldm.data.DataModule", "params": {"batch_size": 2, "train": images, "validation": images}},
        "lightning": {
            "trainer": trainer,
            "callbacks": {"images": {"target": "ldm.callbacks.ImageLogger", "params": {"every_n_steps": 2}}},
        },
    }


def train(folder: Path, config: dict[str, Any]) -> Path:
    write_config(folder / "config.yaml", config)
    main.train(main.parse(["-b", str(folder / "config.yaml"), "-t", "--no-test", "-p", str(folder / "run")]))
    return folder / "run"


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("size", [8, [8, 12]])
def test_grey_pictures_are_trained_from_folders_with_their_grids(tmp_path: Path, kind: str, size: Any) -> None:
    run = train(tmp_path, config_of(tmp_path, kind, size=size))
    weights = read_weights(run / "checkpoints/last.ckpt")
    assert weights["encoder.conv_in.weight"].shape[1] == weights["decoder.conv_out.weight"].shape[0] == 1
    assert weights["loss.discriminator.main.0.weight"].shape[1] == 1
    grid = Image.open(run / "images/0000002.png")
    width = size if size == 8 else 12
    assert (grid.mode, grid.size) == ("L", (2 + 2 * (width + 2), 2 + 4 * 10))
    assert np.asarray(grid)[2:10, 2 : 2 + width].std() > 20  # the first slice


def test_a_batch_of_rectangles_is_resized_in_its_ratio(tmp_path: Path) -> None:
    config = config_of(tmp_path, size=[16, 24])
    config["model"]["params"]["batch_resize_range"] = [16, 32]
    run = train(tmp_path, config)  # the first steps have the largest shorter side: 32 x 48
    assert (run / "checkpoints/last.ckpt").is_file()


def wrong(folder: Path, **params: Any) -> dict[str, Any]:
    """The config of a diffusion model over a grey first stage and pictures that do not fit it."""
    stage = config_of(folder)["model"]
    config = config_of(folder, **params)
    stage["params"] |= {"lossconfig": None}
    config["model"] = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {"unet_config": unet(), "first_stage_config": stage, "timesteps": 10},
    }
    return config


def of_channels(folder: Path, given: int, made: int) -> dict[str, Any]:
    config = config_of(folder)
    config["model"]["params"]["ddconfig"] |= {"in_channels": given, "out_ch": made}
    return config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f: config_of(f, channels=3),
            r"data\.params\.train: got pictures with 3 channels, expected 1.*channels: 1",
        ),
        (
            lambda f: of_channels(f, 3, 3),
            r"got pictures with 1 channels, expected 3.*in_channels and out_ch in ddconfig",
        ),
        (lambda f: of_channels(f, 1, 3), "in_channels=1, out_ch=3, expected equal"),
        (lambda f: config_of(f, disc_in_channels=3), "disc_in_channels=3, expected the 1 channels of out_ch"),
        (lambda f: config_of(f, size=[8, 9]), r"data\.params\.train: got pictures of 8 x 9 pixels .* multiples of 2"),
        (lambda f: wrong(f, channels=3), "got pictures with 3 channels, expected 1"),
        (lambda f: wrong(f, size=[7, 8]), "got pictures of 7 x 8 pixels .* multiples of 2"),
    ],
)
def test_what_does_not_fit_is_one_line_before_training(tmp_path: Path, make: Any, message: str) -> None:
    config = make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        train(tmp_path, config)
    assert "\n" not in str(caught.value)
    assert not any(name.startswith("run/") for name in contents(tmp_path))
