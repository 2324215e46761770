"""What the U-Nets of CompVis' two repositories compute differently, against the network written out with functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import randomise
from torch import Tensor

from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.util import instantiate_from_config

LDM, RDM = (f"{package}.modules.diffusionmodules.openaimodel.UNetModel" for package in ("ldm", "rdm"))
WIDTH = 32


def network(target: str, **changes: object) -> Any:
    """Returns a U-Net of one level with three attention blocks in it, and its weights in disorder."""
    params: dict[str, object] = {
        "image_size": 6,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": WIDTH,
        "num_res_blocks": 1,
        "attention_resolutions": [1],
        "channel_mult": [1],
        "num_heads": 4,
    }
    model = instantiate_from_config({"target": target, "params": params | changes}).eval()
    randomise(model)
    for block in model.modules():
        if isinstance(block, AttentionBlock):  # scores far from one another, so that the number of heads shows
            block.qkv.weight.data *= 2
            block.proj_out.weight.data *= 10
    return model


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])


class WrittenOut:
    """The same network from a state dict, without any of our layers.

    Args:
        weights: the network's state dict.
        heads: attention heads of the encoder and the middle.
        decoder_heads: attention heads of the decoder.
    """

    def __init__(self, weights: dict[str, Tensor], heads: int, decoder_heads: int) -> None:
        self.weights, self.heads, self.decoder_heads = weights, heads, decoder_heads

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.of(name)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Maps [B, 32 groups * n, ...] to the same shape."""
        weight, bias = self.of(name)
        groups = x.reshape(len(x), 32, -1)
        centred = groups - groups.mean(2, keepdim=True)
        normed = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).view(x.shape)
        return normed * weight[:, None, None] + bias[:, None, None]

    def residual(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv(f"{name}.in_layers.2", F.silu(self.norm(f"{name}.in_layers.0", x)))
        h = h + F.linear(F.silu(emb), *self.of(f"{name}.emb_layers.1"))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", F.silu(self.norm(f"{name}.out_layers.0", h)))
        return h + (self.conv(f"{name}.skip_connection", x) if x.shape[1] != WIDTH else x)

    def attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        weight, bias = self.of(f"{name}.qkv")
        qkv = weight[..., 0] @ self.norm(f"{name}.norm", x).flatten(2) + bias[:, None]  # [B, 3 * C, h * w]
        outputs = []
        for of_head in qkv.chunk(heads, dim=1):
            q, k, v = of_head.chunk(3, dim=1)
            scores = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)
            outputs.append(v @ scores.transpose(1, 2))
        weight, bias = self.of(f"{name}.proj_out")
        return x + (weight[..., 0] @ torch.cat(outputs, dim=1) + bias[:, None]).view(x.shape)

    def features(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Returns [B, WIDTH, h, w], which the last layers make the output of."""
        half = WIDTH // 2
        angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = F.linear(torch.cat([angles.cos(), angles.sin()], dim=1), *self.of("time_embed.0"))
        emb = F.linear(F.silu(emb), *self.of("time_embed.2"))
        first = self.conv("input_blocks.0.0", x)
        h = self.residual("input_blocks.1.0", first, emb)
        second = h = self.attention("input_blocks.1.1", h, self.heads)
        h = self.attention("middle_block.1", self.residual("middle_block.0", h, emb), self.heads)
        h = self.residual("middle_block.2", h, emb)
        for index, skip in enumerate((second, first)):
            h = self.residual(f"output_blocks.{index}.0", torch.cat([h, skip], dim=1), emb)
            h = self.attention(f"output_blocks.{index}.1", h, self.decoder_heads)
        return h

    def output(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the prediction [B, 3, h, w]."""
        return self.conv("out.2", F.silu(self.norm("out.0", self.features(x, timesteps))))

    def logits(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the logits [B, n_embed, h, w]."""
        return self.conv("id_predictor.1", self.norm("id_predictor.0", self.features(x, timesteps)))


@pytest.mark.parametrize(
    ("target", "options", "decoder_heads"),
    [
        (LDM, {}, 2),
        (LDM, {"legacy": False}, 4),
        (LDM, {"num_head_channels": 8}, 4),
        (RDM, {}, 4),
        (RDM, {"num_head_channels": 8, "num_heads": -1}, 4),
    ],
)
def test_heads_of_the_decoder(target: str, options: dict[str, object], decoder_heads: int) -> None:
    model, given = network(target, num_heads_upsample=2, **options), inputs()
    reference = {heads: WrittenOut(model.state_dict(), 4, heads).output(*given) for heads in (2, 4)}
    got = model(*given)
    torch.testing.assert_close(got, reference[decoder_heads], rtol=1e-4, atol=1e-5)
    assert (got - reference[6 - decoder_heads]).abs().max() > 0.1


@pytest.mark.parametrize(("target", "kernel"), [(LDM, 1), (RDM, 3)])
def test_logits_over_codes(target: str, kernel: int) -> None:
    model, given = network(target, n_embed=12), inputs()
    weights = model.state_dict()
    assert weights["id_predictor.1.weight"].shape == (12, WIDTH, kernel, kernel)
    got = model(*given)
    assert got.shape == (2, 12, 6, 6)
    torch.testing.assert_close(got, WrittenOut(weights, 4, 4).logits(*given), rtol=1e-4, atol=1e-5)


def test_the_same_weights_give_other_numbers_only_where_the_rules_differ() -> None:
    given = inputs()
    for options, equal in (({}, True), ({"num_heads_upsample": 2}, False), ({"num_heads_upsample": 4}, True)):
        plain, retrieval = (network(target, **options) for target in (LDM, RDM))
        retrieval.load_state_dict(plain.state_dict())
        assert torch.equal(plain(*given), retrieval(*given)) is equal
    plain, retrieval = (network(target, n_embed=12) for target in (LDM, RDM))
    with pytest.raises(RuntimeError, match=r"id_predictor\.1\.weight"):
        retrieval.load_state_dict(plain.state_dict())
