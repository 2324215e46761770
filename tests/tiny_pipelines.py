"""Tiny pipelines of diffusers, image encoders and adapters with random weights, in the forms that people have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from pictures import QUIET
from safetensors.torch import save_file
from torch import Tensor, nn
from toy import FLAGS
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ldm.checkpoint import write_weights
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.config import embedder_config, load_embedder

WIDTH, CONTEXT, SDXL_CONTEXT = 8, 16, 24  # of CLIP's vectors, and of the tokens that the U-Nets see
SIDE = 16  # of the images in pixels
CLIP: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 8, "layers": 2, "width": 16, "patch_size": 4, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@dataclass(frozen=True)
class Tiny:
    """Folders and files of one set: a pipeline with its adapters, a database, and a database of another encoder."""

    pipeline: str
    adapter: str
    plus: str
    encoder: str
    database: str
    other: str

    @property
    def arguments(self) -> dict[str, str]:
        """The arguments of ``rdm.load``."""
        return {"generator": self.pipeline, "adapter": self.adapter, "database": self.database}


def spread(module: nn.Module, seed: int) -> Any:
    """Gives every weight a random value large enough for the image to depend on all inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.25, generator=generator)
    return module.eval()


def write_tiny(folder: Path, kind: str = "sd") -> Tiny:
    """Writes a set of Stable Diffusion (``sd``) or SDXL (``sdxl``)."""
    (folder / "adapters").mkdir(parents=True)
    context = CONTEXT if kind == "sd" else SDXL_CONTEXT
    unet = write_pipeline(folder / "pipeline", kind)
    write_encoder(folder / "clip", folder / "adapters" / "image_encoder")
    write_adapter(folder / "adapters" / "ip-adapter.safetensors", unet, context)
    write_adapter(folder / "adapters" / "ip-adapter-plus.bin", unet, context, plus=True)
    images = {"target": "ldm.data.ParquetImages", "params": FLAGS}
    build_database(folder / "db", images, load_embedder(embedder_config(str(folder / "clip"))), **QUIET)
    write_clip(folder / "other_clip", 5)
    build_database(folder / "other", images, load_embedder(embedder_config(str(folder / "other_clip"))), **QUIET)
    paths = ("pipeline", "adapters/ip-adapter.safetensors", "adapters/ip-adapter-plus.bin", "adapters/image_encoder")
    return Tiny(*(str(folder / path) for path in (*paths, "db", "other")))


def write_clip(folder: Path, seed: int) -> dict[str, Tensor]:
    """Writes a CLIP in open_clip's form, with the means of CLIP, and returns its weights."""
    model = spread(open_clip.CLIP(**CLIP), seed)
    preprocess = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    write_weights(folder / "open_clip_model.safetensors", model.state_dict())
    return model.state_dict()


def write_encoder(clip: Path, folder: Path) -> None:
    """Writes a CLIP in open_clip's form, and its vision tower in that of transformers."""
    given = write_clip(clip, 4)
    vision = CLIP["vision_cfg"]
    config = CLIPVisionConfig(
        hidden_size=vision["width"], intermediate_size=4 * vision["width"], projection_dim=WIDTH,
        num_hidden_layers=vision["layers"], num_attention_heads=vision["width"] // vision["head_width"],
        image_size=vision["image_size"], patch_size=vision["patch_size"], hidden_act="gelu",
    )  # fmt: skip
    tower = CLIPVisionModelWithProjection(config)
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    state: dict[str, Tensor] = {"visual_projection.weight": given["visual.proj"].T.contiguous()}
    for name, tensor in given.items():
        stem, _, last = name.rpartition(".")
        if name in names:
            state[names[name]] = tensor
        elif stem in names:
            state[f"{names[stem]}.{last}"] = tensor
        elif name.startswith("visual.transformer.resblocks."):
            layer, rest = name.split(".")[3], ".".join(name.split(".")[4:])
            place = f"vision_model.encoder.layers.{layer}."
            if rest.startswith("attn.in_proj_"):
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{place}self_attn.{part}_proj.{rest.rpartition('_')[2]}"] = piece.contiguous()
            else:
                for old, new in {
                    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
                    "attn.out_proj": "self_attn.out_proj",
                }.items():  # fmt: skip
                    rest = rest.replace(old, new)
                state[place + rest] = tensor
    missing, extra = tower.load_state_dict(state, strict=False)
    assert not extra and all("position_ids" in name for name in missing), (missing, extra)
    tower.save_pretrained(folder)


def _text_model(folder: Path, width: int, projected: bool, seed: int) -> tuple[Any, Any]:
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    return tokenizer, spread(model, seed)


def write_pipeline(folder: Path, kind: str) -> Any:
    """Writes a pipeline and returns its U-Net."""
    beside = folder.with_name("tokenizers")
    context = CONTEXT if kind == "sd" else SDXL_CONTEXT
    extra: dict[str, Any] = {}
    if kind == "sdxl":
        extra = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 8, "transformer_layers_per_block": (1, 1),
        }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=context, attention_head_dim=8, norm_num_groups=8, **extra,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, sample_size=SIDE,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    parts: dict[str, Any] = {"unet": spread(unet, 1), "vae": spread(vae, 2)}
    if kind == "sd":
        tokenizer, text = _text_model(beside / "first", CONTEXT, False, 3)
        pipe = StableDiffusionPipeline(
            **parts, tokenizer=tokenizer, text_encoder=text, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None, feature_extractor=CLIPImageProcessor(size=8, crop_size=8),
            requires_safety_checker=False,
        )  # fmt: skip
    else:
        first, text = _text_model(beside / "first", 16, False, 3)
        second, other = _text_model(beside / "second", 8, True, 6)
        pipe = StableDiffusionXLPipeline(
            **parts, tokenizer=first, text_encoder=text, tokenizer_2=second, text_encoder_2=other,
            scheduler=EulerDiscreteScheduler(),
        )  # fmt: skip
    pipe.save_pretrained(folder)
    return unet


def write_adapter(file: Path, unet: Any, context: int, plus: bool = False, width: int | None = None) -> None:
    """Writes an IP-Adapter, or IP-Adapter Plus, for a U-Net, with the names that its authors gave the weights."""
    if plus:
        given = CLIP["vision_cfg"]["width"] if width is None else width
        options = {"embed_dims": given, "output_dims": context, "hidden_dims": 16, "heads": 1, "num_queries": 4}
        projection = _plus_names(spread(IPAdapterPlusImageProjection(**options), 7).state_dict())
    else:
        options = {"image_embed_dim": width or WIDTH, "cross_attention_dim": context, "num_image_text_embeds": 4}
        own = spread(ImageProjection(**options), 7).state_dict()
        projection = {name.replace("image_embeds", "proj"): tensor for name, tensor in own.items()}
    generator, weights = torch.Generator().manual_seed(8), dict[str, Tensor]()
    for number, (name, module) in enumerate(_cross_attention(unet)):
        assert "attn2" in name
        for part in ("to_k_ip", "to_v_ip"):
            tensor = torch.randn(module.to_k.out_features, context, generator=generator) * 0.25
            weights[f"{2 * number + 1}.{part}.weight"] = tensor
    if file.suffix == ".bin":
        torch.save({"image_proj": projection, "ip_adapter": weights}, file)
    else:
        flat = {f"image_proj.{name}": tensor.contiguous() for name, tensor in projection.items()}
        save_file({**flat, **{f"ip_adapter.{name}": tensor for name, tensor in weights.items()}}, file)


def _cross_attention(unet: Any) -> list[tuple[str, Any]]:
    """The layers of cross attention, in the order in which an adapter numbers them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    return [(name, unet.get_submodule(name)) for name in names]


def _plus_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a resampler of diffusers under the names in the files of IP-Adapter Plus."""
    found = {}
    for name, tensor in state.items():
        if "attn.to_k" in name:
            joined = torch.cat([tensor, state[name.replace("to_k", "to_v")]])
            found[name.replace("attn.to_k", "0.to_kv")] = joined
        elif "attn.to_v" not in name:
            for old, new in {
                "ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out",
                "ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3",
            }.items():  # fmt: skip
                name = name.replace(old, new)
            found[name] = tensor
    return found
