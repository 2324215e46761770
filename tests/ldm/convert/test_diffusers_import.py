"""Folders that diffusers wrote, of several ages and options: its weights come in without loss and give its numbers."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusers_export import KL, NETWORK, UNET, VQ, assert_bit_equal, built, error, model_config, numbers

from ldm.checkpoint import read_weights, write_weights
from ldm.config import write_config
from ldm.convert.autoencoder import first_stage_from_diffusers
from ldm.convert.diffusers import export_diffusers, import_diffusers
from ldm.convert.unet import unet_from_diffusers, unet_to_diffusers
from ldm.util import instantiate_from_config

diffusers = pytest.importorskip("diffusers")


def test_diffusers_own_folder_is_read(tmp_path: Path) -> None:
    """Written by ``save_pretrained``, not by us."""
    model_params = model_config({}, VQ)
    model = built(model_params)
    export_diffusers({"model": model_params}, model.state_dict(), tmp_path / "a")
    for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vqvae", diffusers.VQModel)):
        kind.from_pretrained(tmp_path / "a", subfolder=name).save_pretrained(tmp_path / "b" / name)
    shutil.copytree(tmp_path / "a" / "scheduler", tmp_path / "b" / "scheduler")
    assert_bit_equal(import_diffusers(tmp_path / "b")[1], model.state_dict())


def test_a_foreign_folder_with_linear_projections_and_v_gives_their_numbers(tmp_path: Path) -> None:
    """As Stable Diffusion v2 is laid out: made and written by diffusers, and read from its own configs alone."""
    torch.manual_seed(0)
    levels = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8}
    theirs = diffusers.UNet2DConditionModel(
        **levels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        upcast_attention=True,
    ).eval()
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    stage = diffusers.AutoencoderKL(**levels, **blocks).eval()
    noise = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False}
    scheduler = diffusers.DDIMScheduler(**noise)
    for name, part in (("unet", theirs), ("vae", stage), ("scheduler", scheduler)):
        part.save_pretrained(tmp_path / name)
    config, state = import_diffusers(tmp_path)
    model = instantiate_from_config(config["model"]).eval()
    model.load_state_dict(state)
    assert model.parameterization == "v" and model.scale_factor == 0.18215
    assert error(model.alphas_cumprod, scheduler.alphas_cumprod) < 1e-6
    x, t, context, image = numbers(2, 4, 8, 8), torch.tensor([3, 801]), numbers(2, 3, 24), numbers(1, 3, 16, 16)
    with torch.no_grad():
        assert error(model.model(x, t, context), theirs(x, t, encoder_hidden_states=context).sample) < 1e-4
        mode = stage.encode(image).latent_dist.mode()
        assert error(model.to_latent(image), 0.18215 * mode) < 1e-4
        assert error(model.first_stage_model.decode(mode), stage.decode(mode).sample) < 1e-4


@pytest.mark.parametrize(
    "heads",
    [
        {"num_head_channels": 64, "attention_resolutions": [2, 4]},
        {"num_head_channels": -1, "num_heads": 2, "attention_resolutions": [1, 4], "legacy": False},
    ],
)
def test_only_levels_with_attention_say_how_many_heads_there_are(heads: dict[str, Any]) -> None:
    """The first level of the former is narrower than a head."""
    unet = {**UNET, "channel_mult": [1, 2, 4], **heads}
    again = unet_from_diffusers(unet_to_diffusers(unet))
    ours, theirs = (instantiate_from_config({"target": NETWORK, "params": params}).eval() for params in (unet, again))
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    theirs.load_state_dict(ours.state_dict())
    x, t, context = numbers(1, 3, 8, 8), torch.tensor([801]), numbers(1, 3, 24)
    with torch.no_grad():
        assert torch.equal(theirs(x, t, context), ours(x, t, context))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("x", "describes no model"),
        ({"params": {}}, "expected a mapping with a 'target' key"),
        ({"target": "os.system"}, "'os.system' is not trusted"),
        ({"target": KL["target"], "params": [1]}, "params: got \\[1\\], expected a mapping"),
        ({"target": NETWORK, "params": UNET}, "expected a latent diffusion model or a first stage"),
    ],
)
def test_a_config_beside_that_describes_something_else_is_refused(model: Any, message: str, tmp_path: Path) -> None:
    export_diffusers({"model": KL}, built(KL).state_dict(), tmp_path)
    write_config(tmp_path / "config.yaml", {"model": model})
    with pytest.raises(ValueError, match=message):
        import_diffusers(tmp_path)


def test_options_that_a_config_leaves_out_are_diffusers_defaults() -> None:
    for kind, read in (
        (diffusers.UNet2DConditionModel, unet_from_diffusers),
        (diffusers.AutoencoderKL, first_stage_from_diffusers),
        (diffusers.VQModel, first_stage_from_diffusers),
    ):
        parameters = inspect.signature(kind.__init__).parameters.values()
        written = {p.name: p.default for p in parameters if p.name not in ("self", "sample_size")}
        named = {"_class_name": kind.__name__}
        assert read(named) == read({**named, **written})


def test_the_attention_names_of_older_folders_are_read(tmp_path: Path) -> None:
    """As in Stable Diffusion v1's autoencoder."""
    model = built(KL)
    export_diffusers({"model": KL}, model.state_dict(), tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    older = {}
    for name, tensor in read_weights(file).items():
        for new, old in (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")):
            name = name.replace(new, old)
        older[name] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in older
    write_weights(file, older)
    assert_bit_equal(import_diffusers(tmp_path)[1], model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel', expected 'UNet2DConditionModel'"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', expected 'silu'"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types holds AttnDownBlock2D"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block is \[1, 2\]"),
    ],
)
def test_a_foreign_unet_without_counterpart_is_refused(change: dict[str, Any], message: str) -> None:
    described = {**unet_to_diffusers(UNET), **change}
    with pytest.raises(ValueError, match=message):
        unet_from_diffusers(described)
