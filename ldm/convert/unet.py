"""Translates the U-Net's options and weight names to and from those of diffusers' ``UNet2DConditionModel``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.util import get_obj_from_str

Names = dict[str, str]

# Options without a counterpart in diffusers' class, and the values with which they can be exported.
WITHOUT_COUNTERPART: dict[str, tuple[Any, ...]] = {
    "use_spatial_transformer": (True,),
    "conv_resample": (True,),
    "dims": (2,),
    "resblock_updown": (False, None),
    "n_embed": (None,),
    "run_without_timestep_conditioning": (False, None),
}
# Options of diffusers' class without a counterpart here, and the values with which they can be imported.
FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1, 1.0),
    "act_fn": ("silu",),
    "norm_num_groups": (32,),
    "norm_eps": (1e-5,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
    "attention_type": ("default", None),
    "num_attention_heads": (None,),
    "mid_block_only_cross_attention": (None, False),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
}
# Defaults of diffusers' class.
DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
}
RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def check_values(what: str, given: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Checks that options have one of their allowed values.

    Raises:
        ValueError: an option has another value; the error names it.
    """
    for name, values in allowed.items():
        if name in given and given[name] not in values:
            raise ValueError(f"{what}: {name} is {given[name]!r}, expected {values[0]!r}; there is no counterpart")


def network_class(config: Mapping[str, Any], further: bool = False) -> type[UNetModel]:
    """Returns the class of a ``unet_config``, which is the U-Net of ``ldm`` or of ``rdm``.

    Args:
        config: the ``unet_config``.
        further: allows modules that others' U-Nets lack.

    Raises:
        ValueError: the class is another network, or has parts that others' U-Nets lack.
    """
    found = get_obj_from_str(config["target"])
    if not (isinstance(found, type) and issubclass(found, UNetModel)):
        raise ValueError(f"unet_config: got {config['target']}, expected a UNetModel; there is no counterpart")
    if found.further and not further:
        raise ValueError(
            f"unet_config: got {config['target']}, expected a UNetModel without further parts; there is no "
            "counterpart, export it with --to safetensors, or with --to diffusers --whole"
        )
    return found


def unet_to_diffusers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns diffusers' config for a U-Net with these arguments.

    Raises:
        ValueError: ``UNet2DConditionModel`` has no counterpart for an option.
    """
    check_values("unet_config", {"use_spatial_transformer": False, **params}, WITHOUT_COUNTERPART)
    context = one_width(params.get("context_dim"))
    widths = [mult * params["model_channels"] for mult in params.get("channel_mult", (1, 2, 4, 8))]
    head, heads = params.get("num_head_channels", -1), params.get("num_heads", -1)
    attended = _attended(params)
    classes = params.get("num_classes")
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.35.0",
        "sample_size": params["image_size"],
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": params["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attended)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        # This is the number of heads, in spite of the name in diffusers.
        "attention_head_dim": [heads if head == -1 else max(width // head, 1) for width in widths],
        "cross_attention_dim": context,
        "transformer_layers_per_block": params.get("transformer_depth", 1),
        "resnet_time_scale_shift": "scale_shift" if params.get("use_scale_shift_norm") else "default",
        "num_class_embeds": classes,
        "dropout": params.get("dropout", 0.0),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
    }


def unet_from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the U-Net's arguments for a config of ``UNet2DConditionModel``.

    Raises:
        ValueError: the U-Net has no counterpart for an option.
    """
    config = {**DEFAULTS, **config}
    check_values("unet/config.json", config, FIXED)
    widths = list(config["block_out_channels"])
    base = widths[0]
    heads = _each(config["attention_head_dim"], len(widths))
    layers = _same("layers_per_block", config["layers_per_block"])
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    for name, given in (("down_block_types", down), ("up_block_types", up)):
        kinds = {name.replace("block_types", "").capitalize().strip("_") + "Block2D"}
        kinds |= {f"CrossAttn{kind}" for kind in kinds}
        if odd := sorted(set(given) - kinds):
            raise ValueError(f"unet/config.json: {name} holds {odd[0]}, expected {' or '.join(sorted(kinds))}")
    if [kind.startswith("Cross") for kind in down] != [kind.startswith("Cross") for kind in reversed(up)]:
        raise ValueError("unet/config.json: down_block_types and up_block_types attend at different levels")
    if any(width % base for width in widths):
        raise ValueError(f"unet/config.json: block_out_channels is {widths}, expected multiples of the first")
    # The middle block has the heads of the last level. The heads of other levels matter only if there is attention.
    attended = [kind.startswith("Cross") for kind in down[:-1]] + [True]
    pairs = [pair for pair, there in zip(zip(widths, heads, strict=True), attended, strict=True) if there]
    sizes, counts = {width // count for width, count in pairs}, {count for _, count in pairs}
    if len(sizes) > 1 and len(counts) > 1:
        raise ValueError(f"unet/config.json: attention_head_dim is {heads}, expected one number or one width of heads")
    by_width = {"num_head_channels": sizes.pop()} if len(sizes) == 1 else {"num_heads": counts.pop(), "legacy": False}
    return {
        "image_size": config.get("sample_size") or 64,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": base,
        "attention_resolutions": [2**i for i, kind in enumerate(down) if kind.startswith("Cross")],
        "num_res_blocks": layers,
        "channel_mult": [width // base for width in widths],
        **by_width,
        "use_spatial_transformer": True,
        "transformer_depth": _same("transformer_layers_per_block", config.get("transformer_layers_per_block", 1)),
        "context_dim": _same("cross_attention_dim", config["cross_attention_dim"]),
        "use_scale_shift_norm": config.get("resnet_time_scale_shift", "default") == "scale_shift",
        "num_classes": config.get("num_class_embeds"),
        "dropout": config.get("dropout", 0.0),
    }


def one_width(context_dim: Any) -> int:
    """Returns the width of a U-Net's only context, which may be given as a list of one number.

    Raises:
        ValueError: there are several contexts, or none.
    """
    found = [context_dim] if isinstance(context_dim, int) else list(context_dim or ())
    if len(found) != 1:
        raise ValueError(f"unet_config: context_dim is {context_dim}, expected one width; there is no counterpart")
    return int(found[0])


def unet_names(params: Mapping[str, Any]) -> Names:
    """Returns prefixes of the U-Net's weight names with those of diffusers; the rest of each name is the same."""
    blocks = int(params["num_res_blocks"])
    attended = _attended(params)
    last = len(attended) - 1
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    found: Names = dict(ENDS)
    ours = 0
    for level, there in enumerate(attended):
        for block in range(blocks):
            ours += 1
            resnets[f"input_blocks.{ours}.0"] = f"down_blocks.{level}.resnets.{block}"
            if there:
                found[f"input_blocks.{ours}.1"] = f"down_blocks.{level}.attentions.{block}"
        if level != last:
            ours += 1
            found[f"input_blocks.{ours}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for theirs, there in enumerate(reversed(attended)):
        for block in range(blocks + 1):
            name = f"output_blocks.{theirs * (blocks + 1) + block}"
            resnets[f"{name}.0"] = f"up_blocks.{theirs}.resnets.{block}"
            if there:
                found[f"{name}.1"] = f"up_blocks.{theirs}.attentions.{block}"
        if theirs != last:
            found[f"{name}.{1 + there}.conv"] = f"up_blocks.{theirs}.upsamplers.0.conv"
    for ours_name, theirs_name in resnets.items():
        found |= {f"{ours_name}.{inner}": f"{theirs_name}.{other}" for inner, other in RES_BLOCK.items()}
    return found


def _attended(params: Mapping[str, Any]) -> list[bool]:
    """Returns for each level whether it has attention."""
    levels = range(len(params.get("channel_mult", (1, 2, 4, 8))))
    return [2**level in list(params["attention_resolutions"]) for level in levels]


def _each(value: Any, count: int) -> list[int]:
    return [int(value)] * count if isinstance(value, int) else [int(v) for v in value]


def _same(name: str, value: Any) -> int:
    """Returns the value of an option that diffusers allows to differ by level, but that must not differ here."""
    if isinstance(value, int):
        return value
    if len({*value}) != 1 or not isinstance(value[0], int):
        raise ValueError(f"unet/config.json: {name} is {list(value)}, expected one number for all levels")
    return value[0]
