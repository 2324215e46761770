"""The switch ``compile``: same names, same numbers, also while the averaged weights are in place."""

from __future__ import annotations

import torch
from torch import nn

from ldm.models.diffusion.pixel import DDPM

UNET = {
    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "params": {
        "image_size": 4,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "channel_mult": [1],
        "num_heads": 2,
    },
}


def test_a_compiled_model_has_the_names_and_numbers_of_another() -> None:
    torch.manual_seed(0)
    plain = DDPM(UNET, timesteps=10, image_size=4)
    compiled = DDPM(UNET, timesteps=10, image_size=4, compile="eager")
    for parameter in plain.model.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    network = compiled.model.diffusion_model
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([0, 9])
    with torch.no_grad():
        own = compiled.model(x, t)
        torch.testing.assert_close(own, plain.model(x, t))
        for model in (plain, compiled):
            for name in model.model_ema.m_name2s_name.values():
                model.model_ema.get_buffer(name).mul_(0.5)
        with compiled.ema_scope(), plain.ema_scope():
            averaged = compiled.model(x, t)
            torch.testing.assert_close(averaged, plain.model(x, t))
        assert not torch.allclose(averaged, own, rtol=0.01)
        assert torch.equal(compiled.model(x, t), own)
    compiled.model(x, t).square().mean().backward()
    assert network.out[2].bias.grad.abs().sum() > 0
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert network._compiled_call_impl is not None
