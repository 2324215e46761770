"""The options that all sampling scripts share; light to import, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.util import add_trust_option


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def fraction_or_count(text: str) -> float | int:
    """Returns a fraction in (0, 1] as a float, or a number of rows as an int."""
    try:
        value = int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a fraction such as 0.2 or a number such as 500, got '{text}'"
        ) from None
    if value <= 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"expected a fraction in (0, 1] or a positive number, got '{text}'")
    return value


def add_sampling_options(parser: argparse.ArgumentParser, *, outdir: str, n_samples: int) -> None:
    """Adds the options; the second names are those of CompVis' scripts."""
    p = parser
    p.add_argument("--outdir", default=outdir, help="folder for images, grid and JSON record")
    p.add_argument("--ckpt", help="checkpoint or run folder; else the newest run, else the shipped model")
    p.add_argument("--database", help="another database than the model's, made by the same embedder")
    p.add_argument("--n_samples", type=positive, default=n_samples, help="images of each query")
    p.add_argument("--knn", "--k_nn", type=positive, default=4, help="neighbours of each image")
    p.add_argument("--scale", "--guidance_scale", type=float, default=2.0, help="guidance scale, 1 for none")
    p.add_argument("--steps", "--ddim_steps", type=positive, default=50, help="denoising steps")
    p.add_argument("--sampler", default="ddim", help="ddim, ddpm, plms or dpmpp_2m")
    p.add_argument("--ddim_eta", type=float, default=0.0, help="fresh noise in each step of ddim, 0 to 1")
    p.add_argument("--seed", type=int, default=0, help="of the first image; the next ones count on")
    p.add_argument("--batch_size", type=positive, default=16, help="images sampled together; changes no image")
    add_trust_option(p)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options as keyword arguments of ``rdm.sample.generate``."""
    return {
        "scale": args.scale,
        "steps": args.steps,
        "sampler": args.sampler,
        "eta": args.ddim_eta,
        "batch_size": args.batch_size,
    }
