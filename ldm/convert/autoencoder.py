"""Translates first stages' options and weight names to and from diffusers' ``VQModel`` and ``AutoencoderKL``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.convert.unet import Names, check_values
from ldm.modules.quantize import Codebook

LOG = logging.getLogger(__name__)
KL, VQ = "AutoencoderKL", "VQModel"
TARGETS = {
    "ldm.models.autoencoder.AutoencoderKL": KL,
    "ldm.models.autoencoder.VQModel": VQ,
    "ldm.models.autoencoder.VQModelInterface": VQ,
}
WITHOUT_COUNTERPART: dict[str, tuple[Any, ...]] = {
    "resamp_with_conv": (True,),
    "tanh_out": (False, None),
    "attn_type": ("vanilla", "none"),
}
FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": (KL, VQ),
    "act_fn": ("silu",),
    "norm_num_groups": (32,),
    "norm_type": ("group",),
    "lookup_from_codebook": (False,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# Defaults of diffusers' classes.
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "num_vq_embeddings": 256,
}
LATENT_CHANNELS = {KL: 4, VQ: 3}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def first_stage_to_diffusers(config: Mapping[str, Any], scale_factor: float) -> dict[str, Any]:
    """Returns diffusers' config of a first stage.

    Args:
        config: target and params of an autoencoder.
        scale_factor: factor by which latents are multiplied.

    Raises:
        ValueError: diffusers has no counterpart for the class or an option.
    """
    if config["target"] not in TARGETS:
        raise ValueError(f"first_stage_config: got {config['target']}, expected {' or '.join(TARGETS)}")
    kind, params, dd = TARGETS[config["target"]], config["params"], config["params"]["ddconfig"]
    check_values("ddconfig", dd, WITHOUT_COUNTERPART)
    check_values("first_stage_config", params, {"remap": (None,), "colorize_nlabels": (None,)})
    if (kind == KL) != bool(dd.get("double_z", True)):
        raise ValueError(f"ddconfig: double_z is {dd.get('double_z', True)}; {kind} has no counterpart")
    if kind == KL and params["embed_dim"] != dd["z_channels"]:
        raise ValueError(f"embed_dim is {params['embed_dim']}, expected z_channels, {dd['z_channels']}; no counterpart")
    attended = _attended(dd)
    found = {
        "_class_name": kind,
        "_diffusers_version": "0.35.0",
        "in_channels": dd["in_channels"],
        "out_channels": dd["out_ch"],
        "block_out_channels": [dd["ch"] * mult for mult in dd["ch_mult"]],
        "layers_per_block": dd["num_res_blocks"],
        "down_block_types": ["AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in attended],
        "up_block_types": ["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in reversed(attended)],
        "latent_channels": dd["z_channels"],
        "sample_size": dd["resolution"],
        "scaling_factor": scale_factor,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "mid_block_add_attention": dd.get("attn_type", "vanilla") != "none",
    }
    if kind == VQ:
        found |= {"num_vq_embeddings": params["n_embed"], "vq_embed_dim": params["embed_dim"]}
    return found


def first_stage_from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns target and params of a first stage for a config of ``VQModel`` or ``AutoencoderKL``.

    Raises:
        ValueError: the first stages have no counterpart for an option.
    """
    kind = config.get("_class_name")
    config = {**DEFAULTS, "latent_channels": LATENT_CHANNELS.get(str(kind)), "_class_name": kind, **config}
    check_values("first stage's config.json", config, FIXED)
    widths, ch = list(config["block_out_channels"]), config["block_out_channels"][0]
    if any(width % ch for width in widths):
        raise ValueError(f"{kind} config.json: block_out_channels is {widths}, expected multiples of the first")
    attended = [name.startswith("Attn") for name in config["down_block_types"]]
    kinds = ["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in reversed(attended)]
    if list(config["up_block_types"]) != kinds:
        raise ValueError(f"{kind} config.json: up_block_types is {config['up_block_types']}, expected {kinds}")
    resolution, latent = int(config.get("sample_size") or 256), config["latent_channels"]
    dd = {
        "double_z": kind == KL,
        "z_channels": latent,
        "resolution": resolution,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [resolution >> level for level, there in enumerate(attended) if there],
        "dropout": 0.0,
        "attn_type": "vanilla" if config.get("mid_block_add_attention", True) else "none",
    }
    if dd["attn_type"] == "none" and any(attended):
        raise ValueError(
            f"{kind} config.json: mid_block_add_attention is false, expected true with attention elsewhere"
        )
    if kind == KL:
        params = {"embed_dim": latent, "ddconfig": dd, "lossconfig": {"target": "torch.nn.Identity"}}
        return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}
    codes = {"embed_dim": config.get("vq_embed_dim") or latent, "n_embed": config["num_vq_embeddings"]}
    return {"target": "ldm.models.autoencoder.VQModelInterface", "params": {**codes, "ddconfig": dd}}


def first_stage_names(dd: Mapping[str, Any]) -> Names:
    """Returns prefixes of a first stage's weight names with those of diffusers; the rest of each name is the same."""
    levels, blocks = len(dd["ch_mult"]), int(dd["num_res_blocks"])
    attended = _attended(dd)
    found: Names = {}
    resnets: Names = {}
    attentions: Names = {}
    for half, side, other, count in (
        ("encoder", "down", "down_blocks", blocks),
        ("decoder", "up", "up_blocks", blocks + 1),
    ):
        found |= {f"{half}.norm_out": f"{half}.conv_norm_out"}
        resnets |= {f"{half}.mid.block_{i + 1}": f"{half}.mid_block.resnets.{i}" for i in range(2)}
        attentions[f"{half}.mid.attn_1"] = f"{half}.mid_block.attentions.0"
        for level in range(levels):
            ours = f"{half}.{side}.{level}"
            theirs = f"{half}.{other}.{level if half == 'encoder' else levels - 1 - level}"
            resnets |= {f"{ours}.block.{i}": f"{theirs}.resnets.{i}" for i in range(count)}
            if attended[level]:
                attentions |= {f"{ours}.attn.{i}": f"{theirs}.attentions.{i}" for i in range(count)}
            found[f"{ours}.{side}sample"] = f"{theirs}.{side}samplers.0"
    for ours, theirs in resnets.items():
        found |= {f"{ours}.{name}": f"{theirs}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
        found[f"{ours}.nin_shortcut"] = f"{theirs}.conv_shortcut"
    for ours, theirs in attentions.items():
        found |= {f"{ours}.{inner}": f"{theirs}.{name}" for inner, name in ATTENTION.items()}
    same = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
    return found | {name: name for name in (*same, "quant_conv", "post_quant_conv", "quantize.embedding")}


def with_plain_codes(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Converts the codebook of a first stage to ``plain``, the only kind that other code has.

    The codes of a latent are the same with any kind of :class:`Codebook`; only training differs. The running average of
    a first stage inside a model is left out, because such a first stage is used with its weights.

    Args:
        model: target and params of a first stage, or of a model with a first stage inside.
        state: its weights, or an empty mapping.

    Returns:
        The converted model and its weights.

    Raises:
        ValueError: the weights have a running average of a codebook that is not plain.
    """
    params, state = dict(model.get("params") or {}), dict(state)
    inside = params.get("first_stage_config")
    stage = dict((inside.get("params") or {}) if isinstance(inside, Mapping) else params)
    options = stage.pop("codebook", None) or {}
    begin = ("first_stage_model." if inside else "") + "quantize."
    if options.get("kind", "plain") != "plain" and any(name.startswith(begin) for name in state):
        if any(name.startswith("model_ema.quantize") for name in state):
            raise ValueError(f"--weights both: got codes of kind {options['kind']}, expected plain; use average or raw")
        book = Codebook(stage["n_embed"], stage["embed_dim"], **options)
        own = {name.removeprefix(begin) for name in state if name.startswith(begin)} & book.state_dict().keys()
        book.load_state_dict({name: state.pop(begin + name) for name in own})
        state[f"{begin}embedding.weight"] = book.embedding.weight.detach()
        LOG.info("a codebook of kind %s was converted to plain codes", options["kind"])
    if isinstance(inside, Mapping):
        stage.pop("use_ema", None)
        state = {name: value for name, value in state.items() if not name.startswith("first_stage_model.model_ema.")}
        return {**model, "params": {**params, "first_stage_config": {**inside, "params": stage}}}, state
    return {**model, "params": stage}, state


def _attended(dd: Mapping[str, Any]) -> list[bool]:
    """Returns for each level whether it has attention."""
    there = dd.get("attn_type", "vanilla") != "none"
    levels = range(len(dd["ch_mult"]))
    return [there and dd["resolution"] >> level in list(dd["attn_resolutions"]) for level in levels]
