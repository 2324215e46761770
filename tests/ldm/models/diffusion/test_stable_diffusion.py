"""Stable Diffusion v1: a file of its layout loads, without its text model, and goes on to diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_models import randomise
from test_checkpoint_names import SD_V1, layout

from ldm.checkpoint import average_as_weights
from ldm.config import write_config
from ldm.convert.diffusers import export_diffusers
from ldm.run import check_described, read_run
from ldm.util import instantiate_from_config

TEXTS = "cond_stage_model."


def shrunk() -> dict[str, Any]:
    """Returns the released config with a tenth of the channels."""
    config = json.loads(json.dumps(layout(SD_V1)["config"]))
    params = config["params"]
    params["unet_config"]["params"] |= {"model_channels": 32, "context_dim": 24}
    params["first_stage_config"]["params"]["ddconfig"] |= {"ch": 32, "resolution": 64}
    return config


def test_the_full_sized_names_and_shapes_fit() -> None:
    found = layout(SD_V1)
    state = {name: torch.empty(shape, device="meta") for name, shape in found["shapes"].items()}
    assert sum(name.startswith(TEXTS) for name in state) == 196
    check_described(found["config"], state, "sd-v1.ckpt")
    state.pop("model.diffusion_model.out.2.bias")
    with pytest.raises(ValueError, match="sd-v1.ckpt does not fit LatentDiffusion: 1 missing: model.diffusion"):
        check_described(found["config"], state, "sd-v1.ckpt")


def test_a_file_of_that_layout_loads_and_gives_its_numbers_in_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = shrunk()
    original = instantiate_from_config({**config, "params": {**config["params"], "use_ema": True}}).eval()
    randomise(original.model, 1)
    original.model_ema(original.model)
    for parameter in original.first_stage_model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    texts = {name: torch.ones(2) for name in layout(SD_V1)["shapes"] if name.startswith(TEXTS)}
    state = {**original.state_dict(), **texts}
    content = {"state_dict": state, "global_step": 470000, "callbacks": {ModelCheckpoint: {"best": torch.ones(1)}}}
    torch.save(content, tmp_path / "model.ckpt")
    write_config(tmp_path / "config.yaml", {"model": config})

    started = {**config["params"], "ckpt_path": str(tmp_path / "model.ckpt"), "ignore_keys": [TEXTS]}
    loaded = instantiate_from_config({**config, "params": started}).eval()
    assert {name for name in loaded.state_dict()} == {n for n in state if not n.startswith((TEXTS, "model_ema."))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())

    read, averaged = read_run(tmp_path)
    export_diffusers(read, averaged, tmp_path / "d")
    loaded.load_state_dict({name: value for name, value in average_as_weights(state).items() if name not in texts})
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(*shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 5, 24)))
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "d", subfolder="unet")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "d", subfolder="vae")
    with torch.no_grad():
        for got, expected in (
            (unet(x, 501, encoder_hidden_states=context).sample, loaded.model(x, torch.tensor([501]), context)),
            (vae.decode(x / vae.config.scaling_factor).sample, loaded.to_image(x)),
        ):
            assert float(expected.std()) > 0
            assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
