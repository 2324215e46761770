"""What the trials work on: tiny pictures, an untrained CLIP, a first stage, configs, databases, a run, a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.checkpoint import write_weights
from ldm.config import write_config
from ldm.util import instantiate_from_config

SIDE = 16  # pixels
PICTURES, MORE = 24, 12
STEPS, EVERY = 24, 4  # of a training, and between its checkpoints
NETWORK: dict[str, Any] = {
    "double_z": False,
    "z_channels": 3,
    "resolution": SIDE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.2,
}


def write_pictures(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Writes random pictures in three class folders; returns the config of the data set."""
    numbers = np.random.default_rng(seed)
    for each in range(count):
        file = folder / f"class{each % 3}" / f"{each:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)
    return {"target": "ldm.data.ImageFolder", "params": {"root": str(folder), "size": SIDE}}


def write_clip(folder: Path) -> dict[str, Any]:
    """Writes an untrained CLIP of a few thousand weights, apart from its vocabulary; returns the embedder's config."""
    seen = {"image_size": SIDE, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    read = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    params = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": seen, "text_cfg": read},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    torch.manual_seed(0)
    instantiate_from_config({"target": "rdm.models.clip.SmallCLIP", "params": params}).export(folder, ["a picture"])
    return {"target": "ldm.modules.encoders.modules.OpenClipEmbedder", "params": {"model": str(folder)}}


def trainer(steps: int = STEPS) -> dict[str, Any]:
    """Returns the part of a training config that says how long it goes on and how often it is saved."""
    options = {"max_steps": steps, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    return {"trainer": options, "checkpoint": {"every_n_train_steps": EVERY}}


def first_stage_config(pictures: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a VQ model with all that has a state: discriminator, average, schedule, codes, sizes."""
    loss = {"disc_start": 2, "disc_num_layers": 1, "disc_ndf": 4}
    schedule = {"warm_up_steps": 3, "lr_start": 0.1, "lr_max": 1.0, "lr_min": 0.1, "max_decay_steps": 60}
    params = {
        "embed_dim": 3,
        "n_embed": 8,
        "ddconfig": NETWORK,
        "learning_rate": 1e-3,
        "use_ema": True,
        "warm_up_steps": 1,
        "batch_resize_range": [8, 24],
        "codebook": {"restart_every": 3},
        "lossconfig": {"target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": loss},
        "scheduler_config": {"target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler", "params": schedule},
    }
    lightning = trainer()
    lightning["trainer"] |= {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
    return {
        "model": {"target": "ldm.models.autoencoder.VQModel", "params": params},
        "data": {"target": "ldm.data.DataModule", "params": {"batch_size": 2, "train": pictures}},
        "lightning": lightning,
    }


def write_first_stage(file: Path) -> dict[str, Any]:
    """Writes the weights of an untrained first stage; returns its config."""
    params: dict[str, Any] = {"ddconfig": {**NETWORK, "dropout": 0.0}, "n_embed": 16, "embed_dim": 3}
    config = {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}
    torch.manual_seed(0)
    write_weights(file, instantiate_from_config(config).state_dict())
    params["ckpt_path"] = str(file)
    return config


def rdm_config(world: Path, work: Path, parts: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    """Returns the config of a retrieval-augmented model whose database lies in the folder of the work."""
    network = {
        "image_size": SIDE // 2, "in_channels": 3, "out_channels": 3, "model_channels": 32,
        "attention_resolutions": [1], "num_res_blocks": 1, "channel_mult": [1], "num_head_channels": 16,
        "use_spatial_transformer": True, "context_dim": 8,
    }  # fmt: skip
    params = {
        "conditioner": {"k": 2, "normalize": True, "scale": 3.0},
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": network},
        "first_stage_config": parts["first_stage"],
        "timesteps": 20,
        "ema_decay": 0.99,
        "p_uncond": 0.2,
        "learning_rate": 1e-3,
    }
    data = {
        "batch_size": 4,
        "k": 2,
        "stored_k": 3,
        "near_duplicate": 2.0,
        "embedder": parts["embedder"],
        "database": {"path": str(work / "db"), "source": parts["pictures"], "batch_size": 4, "shard_rows": 6},
        "train": parts["pictures"],
        "validation": parts["more"],
    }
    del world
    return {
        "model": {"target": "rdm.models.diffusion.ddpm.RetrievalAugmentedDiffusion", "params": params},
        "data": {"target": "rdm.data.RetrievalDataModule", "params": data},
        "lightning": trainer(steps),
    }


def references_config(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns the config with a model that also sees latents and tokens of its neighbours."""
    config = json.loads(json.dumps(config))
    model, data = config["model"]["params"], config["data"]["params"]
    model["references"] = {"p_drop": 0.1}
    model["unet_config"]["target"] = "rdm.modules.diffusionmodules.references.ReferenceUNetModel"
    model["unet_config"]["params"]["reference_width"] = 4
    model["conditioner"] |= {"tokens": "grid", "grid": 2, "token_width": 16}
    data["references"] = {"first_stage": model["first_stage_config"]}
    data["tokens"] = {"grid": 2}
    config["lightning"] = trainer(steps)
    return config


def write_world(world: Path, work: Path) -> None:
    """Writes pictures, CLIP, first stage, and the configs of all work.

    Args:
        world: the folder.
        work: the folder in which the databases and runs of the configs will lie.
    """
    parts = {
        "pictures": write_pictures(world / "pictures", PICTURES, 0),
        "more": write_pictures(world / "more", MORE, 1),
        "embedder": write_clip(world / "clip"),
        "first_stage": write_first_stage(world / "first_stage.safetensors"),
    }
    write_pictures(world / "new", 2, 2)
    rdm = rdm_config(world, work, parts)
    for name, source, path in (("database", "pictures", "db"), ("more", "more", "db"), ("second", "more", "second")):
        database = {"path": str(work / path), "shard_rows": 6, "batch_size": 4, "source": parts[source]}
        write_config(world / f"{name}.yaml", {"embedder": parts["embedder"], "database": database})
    write_config(world / "first_stage.yaml", first_stage_config(parts["pictures"]))
    write_config(world / "rdm.yaml", rdm)
    write_config(world / "references.yaml", references_config(rdm, EVERY))
