"""Measures codes per second of the autoregressive model, with and without a cache of keys and values.

``python -m benchmarks.rarm --batch 1 4 --tokens 256 --threads 2 --repeats 3 [--config configs/rarm.yaml]`` prints one
line of JSON for each batch size. Without the cache, as in CompVis' code, each new code needs a pass over all earlier
codes, and their keys and values and those of the context are computed again. Weights are random. The benchmark checks
that both ways choose the same codes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config import read_config
from ldm.util import instantiate_from_config
from rdm.models.autoregression.sampling import autoregress, seeded_gumbel
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer

CONFIG = Path(__file__).parents[1] / "configs" / "rarm.yaml"
NEIGHBOURS = 4


def build(config: str | Path) -> RetrievalAugmentedTransformer:
    """Returns the model of a config with random weights."""
    model = read_config([config])["model"]
    model["params"]["first_stage_config"]["params"].pop("ckpt_path", None)
    torch.manual_seed(0)
    return instantiate_from_config(model).eval()


def ways_of(model: RetrievalAugmentedTransformer, batch: int, tokens: int) -> dict[str, Callable[[], Tensor]]:
    """Returns for each way a function that samples the codes ``[B, tokens]`` of a batch."""
    width = model.transformer.context_dim
    context = torch.randn(batch, NEIGHBOURS, width, generator=torch.Generator().manual_seed(1))
    seeds = list(range(batch))

    def uncached() -> Tensor:
        seen = model.start(batch)[:, :0]

        def predict(new: Tensor) -> Tensor:
            nonlocal seen
            seen = torch.cat([seen, new], dim=1)
            return model.transformer(seen, context)[:, -1]

        return autoregress(predict, model.start(batch), tokens, seeded_gumbel(seeds))

    return {"cached": lambda: model.sample_codes(context, tokens, seeds), "uncached": uncached}


def measure(model: RetrievalAugmentedTransformer, batch: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Returns the codes per second of both ways, as medians of alternating runs, and their ratio.

    Raises:
        ValueError: the two ways choose different codes.
    """
    ways = ways_of(model, batch, tokens)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    codes: dict[str, Tensor] = {}
    for _ in range(repeats):
        for way, once in ways.items():
            start = time.perf_counter()
            codes[way] = once()
            seconds[way].append(time.perf_counter() - start)
    equal = float((codes["cached"] == codes["uncached"]).float().mean())
    if equal < 1:
        raise ValueError(f"{1 - equal:.1%} of the codes differ between the two ways")
    rate = {f"{way}_tokens_per_second": batch * tokens / statistics.median(times) for way, times in seconds.items()}
    ratio = statistics.median(seconds["uncached"]) / statistics.median(seconds["cached"])
    return {**{name: round(value, 1) for name, value in rate.items()}, "ratio": round(ratio, 2)}


def run(batch: int = 4, tokens: int = 64) -> dict[str, float]:
    """Returns the figures for a few tokens; the gain grows with their number and is larger for the 256 of an image."""
    with torch.no_grad():
        return {"batch": batch, "tokens": tokens, **measure(build(CONFIG), batch, tokens, 1)}


@torch.no_grad()
def main() -> None:
    """Measures the batch sizes of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default=str(CONFIG), help="config of the autoregressive model")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="batch sizes to measure")
    p.add_argument("--tokens", type=int, default=256, help="number of codes to sample for each image")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    p.add_argument("--repeats", type=int, default=3, help="number of timed runs, of which the median is taken")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args.config)
    for batch in args.batch:
        about = {"batch": batch, "tokens": args.tokens, "threads": args.threads, "repeats": args.repeats}
        print(json.dumps({**about, **measure(model, batch, args.tokens, args.repeats)}), flush=True)


if __name__ == "__main__":
    main()
