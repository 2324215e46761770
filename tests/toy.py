"""A whole tiny system, untrained: CLIP, first stage, database, retrieval-augmented model."""

from pathlib import Path
from typing import Any

import torch
from pictures import write_pictures
from small_models import DDCONFIG

from ldm.checkpoint import write_weights
from ldm.config import write_config
from ldm.util import instantiate_from_config

ROOT = Path(__file__).resolve().parents[1]
STYLES = ("fluent", "noto", "openmoji", "openmoji-line", "twemoji")
FLAGS = {  # 40 pictures
    "files": [str(ROOT / f"data/emoji/{style}.parquet") for style in STYLES],
    "size": 16,
    "where": {"category": "flags"},
}


def clip_config() -> dict[str, Any]:
    """A CLIP of a few thousand weights, apart from its vocabulary."""
    model_cfg = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return {
        "target": "rdm.models.clip.SmallCLIP",
        "params": {"model_cfg": model_cfg, "preprocess_cfg": preprocess},
    }


def rdm_config(folder: Path, **params: Any) -> dict[str, Any]:
    """The config of the whole system, its CLIP and first stage written to ``folder``."""
    torch.manual_seed(0)
    instantiate_from_config(clip_config()).export(folder / "clip", ["flag"])
    first_stage = {"target": "ldm.models.autoencoder.VQModelInterface"}
    first_stage["params"] = {"ddconfig": DDCONFIG | {"resolution": 16}, "n_embed": 16, "embed_dim": 3}
    model = instantiate_from_config(first_stage)
    write_weights(folder / "first_stage.safetensors", model.state_dict())
    first_stage["params"]["ckpt_path"] = str(folder / "first_stage.safetensors")
    unet = {
        "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [1],
        "num_res_blocks": 1, "channel_mult": [1], "num_head_channels": 16, "use_spatial_transformer": True,
        "context_dim": 8,
    }  # fmt: skip
    images = {"target": "ldm.data.ParquetImages", "params": FLAGS}
    return {
        "model": {
            "target": "rdm.models.diffusion.ddpm.RetrievalAugmentedDiffusion",
            "params": {
                "conditioner": {"k": 2, "normalize": True, "scale": 3.0},
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": unet,
                },
                "first_stage_config": first_stage,
                **params,
            },
        },
        "data": {
            "target": "rdm.data.RetrievalDataModule",
            "params": {
                "batch_size": 4,
                "k": 2,
                "stored_k": 3,
                "near_duplicate": 2.0,
                "embedder": {
                    "target": "ldm.modules.encoders.modules.OpenClipEmbedder",
                    "params": {"model": str(folder / "clip")},
                },
                "database": {"path": str(folder / "database"), "source": images},
                "train": images,
                "validation": images,
            },
        },
    }


def plain_config(folder: Path, reads: str | None = None, **params: Any) -> dict[str, Any]:
    """The config of a latent diffusion model without retrieval, of nothing, ``classes`` or ``texts``.

    Its pictures are twelve of 16 pixels in the class folders ``class0``, ``class1`` and ``class2``.
    """
    config = rdm_config(folder)
    images = write_pictures(folder / "pictures", 12, classes=3)
    images["params"]["size"] = 16
    given = config["model"]["params"]
    given.pop("conditioner")
    given |= {"timesteps": 50, "conditioning_key": "crossattn" if reads else None}
    encoders = "ldm.modules.encoders.modules."
    if reads == "classes":
        stage = {"embed_dim": 8, "n_classes": 4, "key": "class_label"}
        given["cond_stage_config"] = {"target": f"{encoders}ClassEmbedder", "params": stage}
        given |= {"cond_stage_key": "class_label", "cond_stage_trainable": True, "p_uncond": 0.1}
    elif reads == "texts":
        stage = {"version": str(folder / "clip")}
        given["cond_stage_config"] = {"target": f"{encoders}FrozenCLIPTextEmbedder", "params": stage}
        given |= {"cond_stage_key": "caption", "p_uncond": 0.1}
    else:
        network = given["unet_config"]["params"]
        network.pop("context_dim")
        network |= {"use_spatial_transformer": False}
    given |= params
    data = {"batch_size": 4, "train": images, "validation": images}
    config["model"]["target"] = "ldm.models.diffusion.ddpm.LatentDiffusion"
    config["data"] = {"target": "ldm.data.DataModule", "params": data}
    return config


def references_config(folder: Path, **params: Any) -> dict[str, Any]:
    """The config of the same system with a model that also sees the latents of the neighbours."""
    config = rdm_config(folder, references={"p_drop": 0.1}, **params)
    network = config["model"]["params"]["unet_config"]
    network["target"] = "rdm.modules.diffusionmodules.references.ReferenceUNetModel"
    network["params"]["reference_width"] = 4
    config["data"]["params"]["references"] = {"first_stage": config["model"]["params"]["first_stage_config"]}
    return config


def with_grid(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a model that sees 2x2 tokens of each neighbour beside its vector."""
    config["model"]["params"]["conditioner"] |= {"tokens": "grid", "grid": 2, "token_width": 16}
    config["data"]["params"]["tokens"] = {"grid": 2}
    return config


def grid_config(folder: Path, **params: Any) -> dict[str, Any]:
    """The config of the same system with such a model."""
    return with_grid(rdm_config(folder, **params))


def rarm_config(folder: Path, **params: Any) -> dict[str, Any]:
    """The config of the same system with an autoregressive model over the first stage's 8x8 codes."""
    config = rdm_config(folder)
    stage = config["model"]["params"]["first_stage_config"]
    network = {
        "in_channels": 18, "out_channels": 16, "n_heads": 2, "d_head": 16, "depth": 2, "context_dim": 8,
        "positional_encodings": True, "sequence_length": 64, "cross_attend": True, "causal": True, "continuous": False,
    }  # fmt: skip
    config["model"] = {
        "target": "rdm.models.autoregression.transformer.RetrievalAugmentedTransformer",
        "params": {
            "conditioner": {"k": 2, "normalize": True, "scale": 3.0},
            "transformer_config": {"target": "rdm.modules.attention.RetrievalPatchTransformer", "params": network},
            "first_stage_config": stage,
            **params,
        },
    }
    config["data"]["target"] = "rdm.data.CodedDataModule"
    config["data"]["params"]["codes"] = {"path": str(folder / "codes"), "first_stage": stage}
    return config


def ship(folder: Path, config: dict[str, Any]) -> Path:
    """Writes an untrained model of the config as a folder that the sampling scripts take; its output is not zero."""
    torch.manual_seed(1)
    model = instantiate_from_config(config["model"])
    network, std = (model.model, 0.05) if "unet_config" in config["model"]["params"] else (model.transformer, 0.1)
    if "references" in config["model"]["params"] or getattr(model, "grid_tokens", None) is not None:
        std = 0.2  # with smaller weights, what is seen beside the vectors changes nothing but the last bits
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    write_config(folder / "config.yaml", config)
    write_weights(folder / "model.safetensors", {k: v for k, v in model.state_dict().items() if "model_ema" not in k})
    return folder
