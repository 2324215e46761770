"""Measures time and peak memory of the networks, in comparison with diffusers' modules with the same weights.

``python -m benchmarks.networks --rows imagenet-1-forward decode-1-forward --threads 2 --repeats 5 [--no-compile]``
prints one line of JSON for each row. A row names a network, a batch size and a pass. A way names a library, a dtype and
whether the network is compiled. Ratios are relative to diffusers in float32 without compilation. Each row is timed in a
process of its own, in which the ways take turns. The memory of each way is measured in another process: ``call_gb`` is
the peak minus the memory that the process used before the call, and ``peak_gb`` is the whole peak.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import read_config
from ldm.convert.autoencoder import first_stage_names, first_stage_to_diffusers
from ldm.convert.diffusers import renamed
from ldm.convert.unet import unet_names, unet_to_diffusers
from ldm.util import instantiate_from_config

CONFIG = Path(__file__).parents[1] / "configs" / "rdm" / "imagenet.yaml"
BASE = "diffusers float32"
WAYS = (BASE, "diffusers bfloat16", "float32", "bfloat16", "float32 compiled", "bfloat16 compiled")
CHANNELS = {"imagenet": 192, "small": 64}
ROWS = [
    f"{network}-{batch}-{direction}"
    for network, batch in (("imagenet", 1), ("imagenet", 2), ("small", 2), ("decode", 1))
    for direction in ("forward", "backward")
]
QUICK = ("small-2-forward", "decode-1-forward")


class Decoding(nn.Module):
    """A module whose forward pass is the decoder of a first stage."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, latent: Tensor) -> Tensor:
        """Returns the image [B, 3, 4h, 4w] of a latent [B, 3, h, w]."""
        return self.stage.decode(latent)


def build(network: str, ours: bool, theirs: bool) -> tuple[nn.Module | None, Any]:
    """Returns our network and that of diffusers with the same random weights; one that is not wanted is None."""
    import diffusers

    params = read_config([CONFIG])["model"]["params"]
    if network == "decode":
        config = params["first_stage_config"]
        config["params"].pop("ckpt_path")
        described, names = first_stage_to_diffusers(config, 1.0), first_stage_names(config["params"]["ddconfig"])
    else:
        config = params["unet_config"]
        config["params"] |= {"model_channels": CHANNELS[network], "use_checkpoint": False}
        described, names = unet_to_diffusers(config["params"]), unet_names(config["params"])
    other = None
    if theirs:
        kind = diffusers.VQModel if network == "decode" else diffusers.UNet2DConditionModel
        other = kind.from_config(described).eval()
    if not ours:
        return None, other
    module = instantiate_from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
    if other is not None:
        state = {name: value for name, value in module.state_dict().items() if not name.startswith("loss.")}
        other.load_state_dict(renamed(state, names))
    return (Decoding(module) if network == "decode" else module), other


def ways_of(row: str, chosen: tuple[str, ...]) -> dict[str, Callable[[], Tensor]]:
    """Returns for each way a function that runs the row's network once and returns its output."""
    network, batch, direction = row.split("-")
    ours, theirs = build(network, any("diff" not in way for way in chosen), any("diff" in way for way in chosen))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(int(batch), 3, 64, 64, generator=generator)
    context = torch.randn(int(batch), 4, 512, generator=generator)
    t = torch.tensor([3, 801])[: int(batch)]
    backward, held = direction == "backward", {}

    def runner(way: str) -> Callable[[], Tensor]:
        dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
        foreign = "diffusers" in way
        if (foreign, dtype) not in held:
            source: Any = theirs if foreign else ours
            held[foreign, dtype] = (copy.deepcopy(source) if dtype != torch.float32 else source).to(dtype)
        module: Any = held[foreign, dtype].requires_grad_(backward)
        call: Any = module.decode if foreign and network == "decode" else module
        if "compiled" in way:
            call = torch.compile(call, options=None if backward else {"freezing": True})
        given = (x.to(dtype),) if network == "decode" else (x.to(dtype), t, context.to(dtype))

        def once() -> Tensor:
            with torch.set_grad_enabled(backward):
                output = call(*given)
                output = output.sample if foreign else output
                if backward:
                    output.float().square().mean().backward()
                    for parameter in module.parameters():
                        parameter.grad = None
            return output.detach()

        return once

    return {way: runner(way) for way in chosen}


def measure_time(row: str, chosen: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Returns for each way the median seconds, and their ratio and output difference relative to the first way."""
    ways = ways_of(row, chosen)
    expected = ways[chosen[0]]()
    errors = {way: float((once() - expected).abs().max() / expected.abs().max()) for way, once in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, once in ways.items():
            start = time.perf_counter()
            once()
            seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        way: {
            "seconds": round(median[way], 4),
            "ratio": round(median[way] / median[chosen[0]], 3),
            "difference": float(f"{errors[way]:.2g}"),
        }
        for way in ways
    }


def measure_memory(row: str, way: str) -> dict[str, float]:
    """Returns the peak memory of a call in GB, as a whole and above the memory before the call (Linux only)."""
    once = ways_of(row, (way,))[way]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use
    before = status("VmRSS")
    once()
    return {"peak_gb": round(status("VmHWM"), 3), "call_gb": round(status("VmHWM") - before, 3)}


def status(name: str) -> float:
    """Returns a size in ``/proc/self/status`` in GB, such as ``VmRSS`` (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith(name + ":"))


def in_child(*words: str) -> Any:
    """Runs this module with some arguments in a process of its own, and returns the last line that it prints."""
    command = [sys.executable, "-m", "benchmarks.networks", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 (ourselves)
    return json.loads(done.stdout.splitlines()[-1])


def run(rows: tuple[str, ...] = QUICK) -> dict[str, float]:
    """Returns the ratios of some rows without compilation, on all threads."""
    threads = str(torch.get_num_threads())
    measured = {row: in_child("--rows", row, "--threads", threads, "--no-compile", "--child", "time") for row in rows}
    return {f"{row} {way}": numbers["ratio"] for row, ways in measured.items() for way, numbers in ways.items()}


def main() -> None:
    """Measures the rows and ways of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=ROWS,
        metavar="ROW",
        help=f"rows to measure: {', '.join(ROWS)}; all if not given",
    )
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    p.add_argument("--repeats", type=int, default=5, help="number of timed calls, of which the median is taken")
    p.add_argument(
        "--no-compile", action="store_true", help="do not measure compiled networks, which take minutes each"
    )
    p.add_argument("--no-memory", action="store_true", help="do not measure memory")
    p.add_argument("--child", choices=("time", *WAYS), help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    chosen = tuple(way for way in WAYS if not (args.no_compile and "compiled" in way))
    for row in args.rows:
        words = ("--rows", row, "--threads", str(args.threads), "--repeats", str(args.repeats))
        if args.child == "time":
            print(json.dumps(measure_time(row, chosen, args.repeats)), flush=True)
        elif args.child:
            print(json.dumps(measure_memory(row, args.child)), flush=True)
        else:
            figures = in_child(*words, "--child", "time", *(["--no-compile"] if args.no_compile else []))
            for way in () if args.no_memory else chosen:
                figures[way] |= in_child(*words, "--child", way)
            print(json.dumps({"row": row, "threads": args.threads, "repeats": args.repeats, **figures}), flush=True)


if __name__ == "__main__":
    main()
