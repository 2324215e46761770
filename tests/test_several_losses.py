"""Two processes train every stage as one does, with the global batch spread over them."""

from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures
from several import difference, on_two, train, write
from small_models import DDCONFIG, KL_DDCONFIG, VQ
from toy import clip_config, plain_config, rarm_config, rdm_config

STEPS = 20
HELD_OUT = 9  # no multiple of the batch
RATE = 2e-5  # Adam makes steps of full size of gradients that are rounding errors


def first_stage(folder: Path, target: str, loss: str, **params: Any) -> dict[str, Any]:
    """A first stage whose discriminator starts after a few steps."""
    given = {"disc_start": 4, "disc_num_layers": 1, "disc_ndf": 4}
    config = {"target": f"ldm.modules.losses.{loss}", "params": given}
    pictures = [write_pictures(folder / name, count, seed) for name, count, seed in (("a", 14, 0), ("b", HELD_OUT, 1))]
    data = {"batch_size": 4, "train": pictures[0], "validation": pictures[1]}
    return {
        "model": {
            "target": f"ldm.models.autoencoder.{target}",
            "params": {"learning_rate": RATE, "use_ema": True, "embed_dim": 3, "lossconfig": config, **params},
        },
        "data": {"target": "ldm.data.DataModule", "params": data},
    }


def vq(folder: Path, **params: Any) -> dict[str, Any]:
    """A VQ-GAN with all that depends on several samples: k-means, restarts of codes, sizes of batches.

    It has few latents and codes, so that none lies between two codes by no more than a rounding error.
    """
    given = {**VQ["params"], "ddconfig": DDCONFIG | {"ch_mult": [1, 1, 1]}, "n_embed": 4, **params}
    given |= {"warm_up_steps": 2, "codebook": {"restart_every": 3}}
    loss = "vqperceptual.VQLPIPSWithDiscriminator"
    given = {"batch_resize_range": [8, 24], **given}
    return first_stage(folder, "VQModel", loss, **given)


def kl(folder: Path) -> dict[str, Any]:
    """A KL first stage, which draws from its posterior, and learns the scale of its likelihood."""
    loss = "contperceptual.LPIPSWithDiscriminator"
    return first_stage(folder, "AutoencoderKL", loss, ddconfig=KL_DDCONFIG, learn_logvar=True)


def rdm(folder: Path) -> dict[str, Any]:
    """The retrieval-augmented model, with dropped contexts and a scale factor that the first batch gives."""
    config = rdm_config(folder, learning_rate=RATE, scale_by_std=True, p_uncond=0.3)
    config["data"]["params"] |= {"draw_from": 3}
    return config


def rarm(folder: Path) -> dict[str, Any]:
    """The autoregressive model, with masked and dropped contexts."""
    return rarm_config(folder, learning_rate=RATE, p_uncond=0.3, p_mask_max=0.5)


def ldm(folder: Path) -> dict[str, Any]:
    """A diffusion model of classes with a trained cond stage."""
    return plain_config(folder, "classes", learning_rate=RATE)


def clip(folder: Path) -> dict[str, Any]:
    """The small CLIP, whose loss compares all pictures of a batch with all texts, some of them recoloured."""
    config = clip_config()
    config["params"] |= {"recoloured": 0.25, "warmup_steps": 4, "learning_rate": RATE}
    data = {**rdm_config(folder)["data"]["params"]}
    images = {name: data[name] for name in ("train", "validation")}
    return {"model": config, "data": {"target": "ldm.data.DataModule", "params": {"batch_size": 8, **images}}}


CASES = {"vq": vq, "kl": kl, "rdm": rdm, "rarm": rarm, "ldm": ldm, "clip": clip}


@pytest.mark.parametrize("stage", CASES)
def test_two_processes_train_as_one_does(stage: str, tmp_path: Path) -> None:
    config = CASES[stage](tmp_path)
    path, batch = write(tmp_path, **config, max_steps=STEPS), config["data"]["params"]["batch_size"]
    train(tmp_path, "-b", path, "-p", "one")
    train(tmp_path, "-b", path, "-p", "two", *on_two(batch))
    found = difference(tmp_path / "one", tmp_path / "two")
    assert max(found.values()) < 1e-5, found
