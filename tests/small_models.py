"""Configs of models small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ldm.util import instantiate_from_config

DDCONFIG: dict[str, Any] = {
    "double_z": False,
    "z_channels": 3,
    "resolution": 8,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
KL_DDCONFIG = DDCONFIG | {"double_z": True}
IDENTITY = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
VQ = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {"embed_dim": 3, "n_embed": 8, "ddconfig": DDCONFIG},
}
KL = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {"embed_dim": 3, "ddconfig": KL_DDCONFIG, "lossconfig": None},
}


def unet(context_dim: int | None = None) -> dict[str, Any]:
    """Returns the config of a U-Net for latents `[B, 3, 4, 4]` or `[B, 3, 8, 8]`."""
    params: dict[str, Any] = {
        "image_size": 4,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [1] if context_dim else [],
        "channel_mult": [1],
        "num_head_channels": 16,
    }
    if context_dim:
        params |= {"use_spatial_transformer": True, "context_dim": context_dim}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter random values, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)


RDM: dict[str, Any] = {
    "target": "rdm.models.diffusion.ddpm.RetrievalAugmentedDiffusion",
    "params": {
        "learning_rate": 2.0e-4,
        "weight_decay": 0.02,
        "seed": 3,
        "ema_decay": 0.99,
        "conditioner": {"k": 2, "normalize": True, "scale": 4.0},
        "p_uncond": 0.2,
        "timesteps": 10,
        "linear_start": 0.0015,
        "scale_by_std": True,
        "cache_latents": True,
        "unet_config": unet(context_dim=8),
        "first_stage_config": VQ,
    },
}


def trained_rdm() -> Any:
    """Returns a model whose running average is another than its weights."""
    model = instantiate_from_config(RDM)
    model.scale_factor.fill_(1.7)
    model.model_ema(model.model)
    randomise(model)
    return model
