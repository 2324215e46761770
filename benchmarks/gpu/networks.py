"""The networks of the RDM of ImageNet on a device: attention kernels, U-Net, decoder, sampling, and training steps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.timing import GPU, Bench, attempt, tflop
from ldm.config import read_config
from ldm.convert.diffusers import renamed
from ldm.convert.unet import unet_names, unet_to_diffusers
from ldm.models.tiling import decode_tiled
from ldm.modules.attention import _xformers_attention
from ldm.util import instantiate_from_config

CONFIG = "configs/rdm/imagenet.yaml"
HEAD = 32  # width of a head
# Queries, keys and heads of the attentions of the U-Net at 64 x 64 latents, with four neighbours.
SHAPES = {
    "self 32x32": (1024, 1024, 12), "self 16x16": (256, 256, 18), "self 8x8": (64, 64, 30), "neighbours": (1024, 4, 12),
}  # fmt: skip
KERNELS: dict[str, list[SDPBackend]] = {
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "math": [SDPBackend.MATH],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILED = {"compiled": None, "cuda graphs": "reduce-overhead"}  # ways, and the mode of torch.compile


def config_of(bench: Bench) -> dict[str, Any]:
    """Returns the config of the model of ImageNet; a tiny one has few channels."""
    config: dict[str, Any] = read_config([CONFIG])["model"]
    config["params"]["unet_config"]["params"]["use_checkpoint"] = False
    stage = config["params"]["first_stage_config"]["params"]
    stage.pop("ckpt_path")
    if bench.tiny:
        config["params"]["unet_config"]["params"] |= {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
                                                      "attention_resolutions": [2]}  # fmt: skip
        stage["ddconfig"] |= {"ch": 32, "num_res_blocks": 1}
    return config


def inputs(bench: Bench, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns latents, times and contexts of a batch of random numbers."""
    side = 16 if bench.tiny else 64
    x = torch.randn(batch, 3, side, side, device=bench.device)
    times = torch.randint(1000, (batch,), device=bench.device)
    return x, times, torch.randn(batch, 4, 512, device=bench.device)


def attention(bench: Bench) -> dict[str, Any]:
    """Returns the milliseconds of each kernel at the shapes of the U-Net, and its difference from exact products."""
    found: dict[str, Any] = {}
    for name, (queries, keys, heads) in SHAPES.items():
        batch = 1 if bench.tiny else 16
        for dtype in (torch.bfloat16,) if bench.tiny else (torch.float16, torch.bfloat16, torch.float32):
            q, k, v = (torch.randn(batch, n, heads, HEAD, device=bench.device) for n in (queries, keys, keys))
            exact = _plain(*(each.double() for each in (q, k, v))).float()
            half = [each.to(dtype) for each in (q, k, v)]
            ways: dict[str, Callable[[], Tensor]] = {"plain": functools.partial(_plain, *half)}
            ways |= {each: functools.partial(_sdpa, backends, *half) for each, backends in KERNELS.items()}
            if bench.device == GPU and (fast := _xformers_attention()) is not None:
                ways["xformers"] = functools.partial(fast, *half)

            def one(call: Callable[[], Tensor], exact: Tensor = exact) -> dict[str, Any]:
                difference = float((call().float() - exact).abs().max() / exact.abs().max())
                return {"ms": round(1000 * bench.seconds(call), 4), "difference": float(f"{difference:.1g}")}

            rows = {way: attempt(functools.partial(one, call)) for way, call in ways.items()}
            found[f"{name} {str(dtype).removeprefix('torch.')}"] = rows
    return found


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


def _sdpa(backends: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backends):
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def both_networks(bench: Bench) -> dict[str, Any]:
    """Returns our U-Net and that of diffusers with the same random weights."""
    import diffusers

    config = config_of(bench)["params"]["unet_config"]
    ours = instantiate_from_config(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    kind: Any = diffusers.UNet2DConditionModel
    theirs = kind.from_config(unet_to_diffusers(config["params"]))
    theirs.load_state_dict(renamed(ours.state_dict(), unet_names(config["params"])))
    return {"ours": ours.to(bench.device), "diffusers": theirs.to(bench.device)}


def unet(bench: Bench) -> dict[str, Any]:
    """Returns the milliseconds of an evaluation and of a training step of our U-Net and of diffusers' with its weights.

    A training step is the forward and backward pass in autocast and a fused AdamW, with weights in float32.
    """
    batch = 1 if bench.tiny else 8
    given = inputs(bench, batch)
    found: dict[str, Any] = {"batch": batch}
    for name, network in both_networks(bench).items():
        call = _caller(name, network)
        for dtype in DTYPES:
            found[f"{name} {dtype} forward"] = attempt(_forward, bench, call, given, dtype)
            if dtype != "float16":  # which needs a scaler of gradients
                found[f"{name} {dtype} training step"] = attempt(_training, bench, network, call, given, dtype)
        network.to(memory_format=torch.channels_last)
        last = (given[0].to(memory_format=torch.channels_last), *given[1:])
        found[f"{name} bfloat16 channels-last forward"] = attempt(_forward, bench, call, last, "bfloat16")
        network.to(memory_format=torch.contiguous_format)
        for way, mode in COMPILED.items():
            if not bench.tiny or mode is None:
                compiled = _caller(name, torch.compile(network, backend=bench.compiler, mode=mode))
                found[f"{name} bfloat16 {way} forward"] = attempt(_forward, bench, compiled, given, "bfloat16")
    return found


def _caller(name: str, network: Any) -> Callable[..., Tensor]:
    return network if name == "ours" else lambda x, t, context: network(x, t, context).sample


def _cast(bench: Bench, dtype: str) -> Any:
    enabled = dtype != "float32"
    return torch.autocast(bench.device, DTYPES[dtype], enabled=enabled) if enabled else contextlib.nullcontext()


def _forward(bench: Bench, call: Callable[..., Tensor], given: tuple[Tensor, ...], dtype: str) -> dict[str, Any]:
    def once() -> None:
        with torch.inference_mode(), _cast(bench, dtype):
            call(*given)

    return bench.figures(once)


def _training(
    bench: Bench, network: nn.Module, call: Callable[..., Tensor], given: tuple[Tensor, ...], dtype: str
) -> dict[str, Any]:
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def once() -> None:
        with _cast(bench, dtype):
            loss = call(*given).float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return bench.figures(once)


def decoder(bench: Bench) -> dict[str, Any]:
    """Returns the milliseconds and the memory of decoding one picture, as a whole and in tiles."""
    stage = instantiate_from_config(config_of(bench)["params"]["first_stage_config"]).to(bench.device).eval()
    found: dict[str, Any] = {}
    for side in (64,) if bench.tiny else (256, 512, 1024):
        latent = torch.randn(1, 3, side // 4, side // 4, device=bench.device)
        for name, tile in (("whole", None), ("tiles of half the side", side // 2)):
            for dtype in ("float32", "bfloat16"):

                def once(tile: int | None = tile, dtype: str = dtype, latent: Tensor = latent) -> Any:
                    with torch.inference_mode(), _cast(bench, dtype):
                        return decode_tiled(stage, latent, tile)

                found[f"{side} {name} {dtype}"] = attempt(bench.figures, once)
    return found


def sampling(bench: Bench) -> dict[str, Any]:
    """Returns the images a second of the whole model with random weights: UniPC in 10 steps, scale 2, and decoding."""
    model = instantiate_from_config(config_of(bench)).to(bench.device).eval()
    side, found = 16 if bench.tiny else 64, {}
    for batch in (1, 2) if bench.tiny else (1, 8, 64):
        _, _, context = inputs(bench, batch)
        null = torch.zeros_like(context)
        for dtype in ("bfloat16",) if bench.tiny else ("float32", "bfloat16"):

            def once(n: int = batch, context: Tensor = context, null: Tensor = null, dtype: str = dtype) -> Any:
                with _cast(bench, dtype):
                    return model.sample(context, (3, side, side), list(range(n)), sampler="unipc", steps=10, scale=2.0,
                                        null=null)  # fmt: skip

            def one(call: Callable[[], Any] = once, n: int = batch) -> dict[str, Any]:
                return {"images_per_s": round(n / bench.seconds(call, 1), 3), "peak_gb": bench.peak_gb(call)}

            found[f"{batch} {dtype}"] = attempt(one)
    return found


def training(bench: Bench) -> dict[str, Any]:
    """Returns the pictures a second that the U-Net of ImageNet is trained with, and its share of the device's products.

    The share (MFU) is that of the operations of a step, counted by torch, in those of a large product in bfloat16.
    """
    network = instantiate_from_config(config_of(bench)["params"]["unet_config"]).to(bench.device)
    peak, found = _product_tflops(bench), {}
    found["product in bfloat16"] = {"tflop_per_s": round(peak, 2)}
    for batch in (1,) if bench.tiny else (4, 16, 48):
        given = inputs(bench, batch)

        def one(batch: int = batch, given: tuple[Tensor, ...] = given) -> dict[str, Any]:
            row = _training(bench, network, network, given, "bfloat16")
            work = 3 * tflop(lambda: network(*given))
            rate = batch / row["ms"] * 1000
            return {"pictures_per_s": round(rate, 2), "mfu": round(work / row["ms"] * 1000 / peak, 3), **row}

        found[f"batch {batch}"] = attempt(one)
    return found


def _product_tflops(bench: Bench) -> float:
    side = 256 if bench.tiny else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / bench.seconds(lambda: a @ b) / 1e12


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "attention": attention, "sampling": sampling, "training": training, "unet": unet, "decoder": decoder,
}  # fmt: skip
"""The parts by name, those that matter most first."""
