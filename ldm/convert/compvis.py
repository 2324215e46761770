"""Exports latent diffusion models for CompVis' code: ``model.ckpt``, and a config with its targets and arguments.

Arguments of retrieval-augmented models are translated before, in ``rdm.convert.compvis``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint import write_checkpoint
from ldm.config import write_config
from ldm.convert.autoencoder import with_plain_codes
from ldm.convert.unet import network_class, one_width
from ldm.files import atomic_path
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.encoders.clip import openai_model

# The arguments of CompVis' classes. Further arguments of this project's classes concern training and are left out.
DIFFUSION = """
    timesteps beta_schedule loss_type monitor use_ema first_stage_key image_size channels log_every_t clip_denoised
    linear_start linear_end cosine_s given_betas original_elbo_weight v_posterior l_simple_weight parameterization
    scheduler_config use_positional_encodings learn_logvar logvar_init num_timesteps_cond cond_stage_key
    cond_stage_trainable concat_mode cond_stage_forward conditioning_key scale_factor scale_by_std unet_config
    first_stage_config cond_stage_config
"""
UNET = """
    image_size in_channels model_channels out_channels num_res_blocks attention_resolutions dropout channel_mult
    conv_resample dims num_classes use_checkpoint use_fp16 num_heads num_head_channels num_heads_upsample
    use_scale_shift_norm resblock_updown use_new_attention_order use_spatial_transformer transformer_depth context_dim
    n_embed legacy
"""
KL = "ddconfig embed_dim image_key colorize_nlabels monitor"
VQ = KL + " n_embed batch_resize_range remap sane_index_shape use_ema"
FIRST_STAGE = {"VQModel": VQ, "VQModelInterface": VQ, "AutoencoderKL": KL}
UNET_TARGET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
MODELS, AUTOENCODERS = "ldm.models.diffusion.ddpm.", "ldm.models.autoencoder."
SCHEDULERS = tuple(
    f"ldm.lr_scheduler.{name}"
    for name in ("LambdaWarmUpCosineScheduler", "LambdaWarmUpCosineScheduler2", "LambdaLinearScheduler")
)
ENCODERS = "ldm.modules.encoders.modules."
CONDITIONS = {
    "torch.nn.Identity": "",
    f"{ENCODERS}ClassEmbedder": "embed_dim n_classes key",
    f"{ENCODERS}TransformerEmbedder": "n_embed n_layer vocab_size max_seq_len device",
    f"{ENCODERS}BERTEmbedder": "n_embed n_layer vocab_size max_seq_len device use_tokenizer embedding_dropout",
    f"{ENCODERS}SpatialRescaler": "n_stages method multiplier in_channels out_channels bias",
    f"{ENCODERS}FrozenCLIPTextEmbedder": "version device max_length n_repeat normalize",
    f"{ENCODERS}FrozenClipImageEmbedder": "model jit device antialias",
}
# Losses are not exported, nor is CLIP, whose weights CompVis' code loads under other names.
LEFT = ("loss.", "first_stage_model.loss.", "cond_stage_model.embedder.")
UNCONDITIONAL = "__is_unconditional__"
README = """# Export for CompVis' code

`model.ckpt` has the weights in float32, and `config.yaml` the arguments of CompVis' `{target}`.
Without a loss and an optimiser, a training there starts from these weights anew, with `model.params.ckpt_path`.

"""
IDENTITY = {"target": "torch.nn.Identity"}


def export_compvis(
    model: Mapping[str, Any],
    state: Mapping[str, Tensor],
    output: str | Path,
    *,
    arguments: Sequence[str] = (),
    notes: str = "",
) -> Path:
    """Writes ``model.ckpt``, ``config.yaml`` and ``README.md`` and returns the path of ``model.ckpt``.

    Args:
        model: target and params of a latent diffusion model or a first stage; see :func:`compvis_model`.
        state: its weights; CompVis' code uses a running average if the state has one.
        output: the folder.
        arguments: names of further arguments of the model's class.
        notes: lines that are written into the config as comments, and into the README.

    Raises:
        ValueError: CompVis' code has no counterpart for a class or an option.
    """
    output = Path(output)
    averaged = any(name.startswith("model_ema.") for name in state)
    model, state = with_plain_codes(model, state)
    described = {"model": compvis_model(model, averaged, arguments)}
    return write_compvis(described, state, output, notes)


def write_compvis(config: dict[str, Any], state: Mapping[str, Tensor], output: Path, notes: str = "") -> Path:
    """Writes ``model.ckpt`` in float32, and ``config.yaml`` and ``README.md`` with notes; returns the weights' path."""
    kept = {n: t.float() if t.is_floating_point() else t for n, t in state.items() if not n.startswith(LEFT)}
    write_checkpoint(output / "model.ckpt", kept)
    write_config(output / "config.yaml", config, notes)
    told = "".join(f"- {line}\n" for line in notes.splitlines())
    with atomic_path(output / "README.md") as temporary:
        temporary.write_text(f"{README.format(target=config['model']['target'])}{told}", encoding="utf-8")
    return output / "model.ckpt"


def compvis_model(model: Mapping[str, Any], averaged: bool, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Returns target and params in CompVis' names, without arguments that its code does not have.

    Args:
        model: target and params of this project, or of CompVis' code already.
        averaged: whether the checkpoint holds a running average, which CompVis' code then loads.
        arguments: names of further arguments of the model's class; with these, any class is accepted.

    Raises:
        ValueError: CompVis' code has no counterpart for a class or an option.
    """
    target, params = str(model["target"]), dict(model["params"])
    if target.startswith(AUTOENCODERS):
        return first_stage_of_compvis(model, averaged)
    if not target.startswith(MODELS) and not arguments:
        raise ValueError(f"got {target}, expected a latent diffusion model; CompVis' code has no such class")
    if params.get("parameterization", "eps") not in ("eps", "x0"):
        raise ValueError(f"parameterization is '{params['parameterization']}', expected eps or x0 for CompVis' code")
    if params.get("given_betas") is not None:
        raise ValueError("given_betas: got a list, expected the name of a beta_schedule; CompVis' code reads no lists")
    network = params["unet_config"]
    kind = network_class(network)
    unet = network["params"]
    # CompVis' class requires the first, and CompVis' scripts sample latents of the size of the others.
    needed = {"timesteps": 1000, "image_size": unet["image_size"], "channels": unet["out_channels"]}
    names = [*DIFFUSION.split(), *arguments]
    found = {name: value for name, value in {**needed, **params}.items() if name in names}
    found["use_ema"] = averaged
    kept = {"target": network["target"], "params": _unet(unet)}
    found["unet_config"] = kept if arguments else _plain_unet(kind, kept["params"])
    if "first_stage_config" in params:
        found["first_stage_config"] = first_stage_of_compvis(params["first_stage_config"], False)
        # Without a cond stage, the context is given as tokens; CompVis' word for none would remove it.
        none = IDENTITY if params.get("conditioning_key") and not arguments else UNCONDITIONAL
        found["cond_stage_config"] = _condition(params.get("cond_stage_config") or none)
    scheduler = params.get("scheduler_config")
    if not isinstance(scheduler, Mapping) or scheduler.get("target") not in SCHEDULERS:
        found.pop("scheduler_config", None)
    rate = model.get("base_learning_rate", params.get("learning_rate", 1e-4))
    return {"base_learning_rate": rate, "target": target, "params": found}


def _plain_unet(kind: type[UNetModel], params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a ``unet_config`` for CompVis' latent-diffusion, whose U-Net has only one context.

    Args:
        kind: the class of the network. It must compute the same as latent-diffusion's U-Net for these arguments.
        params: its arguments.

    Raises:
        ValueError: latent-diffusion's U-Net would be another network with these arguments.
    """
    found = dict(params)
    if kind.id_kernel != UNetModel.id_kernel and found.get("n_embed") is not None:
        raise ValueError(
            f"unet_config: n_embed is {found['n_embed']}, expected none; the id_predictor of latent-diffusion has a "
            f"kernel of {UNetModel.id_kernel}, this one of {kind.id_kernel}"
        )
    if not kind.upsample_heads:
        found.pop("num_heads_upsample", None)
    if found.get("context_dim") is not None:
        found["context_dim"] = one_width(found["context_dim"])
    return {"target": UNET_TARGET, "params": found}


def _unet(params: Mapping[str, Any]) -> dict[str, Any]:
    if params.get("run_without_timestep_conditioning"):
        raise ValueError("unet_config: run_without_timestep_conditioning is true, expected false for CompVis' code")
    return {name: value for name, value in params.items() if name in UNET.split()}


def first_stage_of_compvis(config: Mapping[str, Any], averaged: bool) -> dict[str, Any]:
    """Returns target and params of a first stage in CompVis' names, without its loss; see :func:`compvis_model`."""
    target = str(config["target"])
    name, params = target.removeprefix(AUTOENCODERS), config.get("params") or {}
    if name == "IdentityFirstStage":
        return {"target": target, "params": dict(params)}
    if name not in FIRST_STAGE:
        raise ValueError(f"first_stage_config: got {target}, expected {', '.join(FIRST_STAGE)} for CompVis' code")
    known = FIRST_STAGE[name].split()
    if averaged and "use_ema" not in known:
        raise ValueError(f"--weights both: CompVis' {name} has no running average; use average or raw")
    found = {key: value for key, value in params.items() if key in known}
    if averaged:
        found["use_ema"] = True
    else:
        found.pop("use_ema", None)
    return {"target": target, "params": {**found, "lossconfig": IDENTITY}}


def _condition(config: Mapping[str, Any] | str) -> Any:
    if not isinstance(config, Mapping):
        return config
    if config["target"].startswith(AUTOENCODERS):
        return first_stage_of_compvis(config, False)
    if config["target"] not in CONDITIONS:
        raise ValueError(f"cond_stage_config: got {config['target']}, expected one of {', '.join(CONDITIONS)}")
    if not (params := config.get("params")):
        return dict(config)
    name = str(params.get("version", params.get("model", "")))
    if name and openai_model(name, params.get("pretrained"))[1] != "openai":
        raise ValueError(f"cond_stage_config: got CLIP {name}, expected one of OpenAI's, which CompVis' code loads")
    known = CONDITIONS[config["target"]].split()
    return {"target": config["target"], "params": {key: value for key, value in params.items() if key in known}}
