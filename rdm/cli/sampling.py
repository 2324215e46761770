"""The options that scripts share; light to import, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.command_line import add_trust_option, seed_number
from ldm.util import bytes_of

# What one kind of model alone takes, and what it does without: each name as in ``rdm.sampling.samples.generate``.
DIFFUSION: dict[str, Any] = {
    "steps": None,
    "sampler": None,
    "eta": None,
    "spacing": "uniform",
    "rescale": 0.0,
    "interval": None,
    "weaker": None,
    "weaker_scale": 2.0,
}
AUTOREGRESSION: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None}
PRECISIONS = ("32", "bf16")

# What CompVis' scripts call options of ours; what has one name in both is not here, --plms is an action of its own.
COMPVIS = {
    "--caption": "--prompt",
    "--use_neighbors": "--use_query",
    "--k_nn": "--knn",
    "--guidance_scale": "--scale",
    "--ddim_steps": "--steps",
    "--eta": "--ddim_eta",
    "--save_nns": "--save_neighbours",
}


def names(option: str) -> list[str]:
    """Returns an option of ours and what CompVis' scripts call it."""
    return [option, *(theirs for theirs, ours in COMPVIS.items() if ours == option)]


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def finite(text: str) -> float:
    """Returns a number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got '{text}'")
    return value


def fraction(text: str) -> float:
    """Returns a number from 0 to 1."""
    if not 0 <= finite(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got '{text}'")
    return float(text)


def folder(text: str) -> str:
    """Returns the path of a folder that is there or can be made, so that nothing is sampled in vain."""
    path = Path(text)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {there}, expected a folder that can be made or written to")
    return text


def fraction_or_count(text: str) -> float | int:
    """Returns a fraction in (0, 1] as a float, or a number of rows as an int."""
    try:
        value = int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a fraction such as 0.2 or a number such as 500, got '{text}'"
        ) from None
    if not value > 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"expected a fraction in (0, 1] or a positive number, got '{text}'")
    return value


def pixels_or_memory(text: str) -> int | str:
    """Returns a number of pixels as an int, or a size of memory such as ``2GB`` as it is."""
    try:
        return positive(text) if text.isdigit() else text if bytes_of(text) else 0
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a side in pixels or a size such as 2GB, got '{text}'") from error


def add_tile_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--tile``."""
    parser.add_argument(
        "--tile",
        type=pixels_or_memory,
        metavar="SIDE",
        help="the first stage works in tiles: of so many pixels a side, or such as fit a memory, e.g. 2GB",
    )


def add_ray_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--ray``."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="embed on the machines of a Ray cluster: 'local' starts one here, 'auto' takes the one that runs here, "
        "HOST:PORT is the head of one that this machine is part of; all of them have to see the pictures and the "
        "database in the same folders, and each embeds whole shards (shard_rows of the config)",
    )


def add_embedding_options(parser: argparse.ArgumentParser, beside: str) -> None:
    """Adds what the scripts that embed pictures share, for use with the option ``beside`` or with a config."""
    p = parser
    p.add_argument("--size", type=positive, default=256, help=f"with {beside}: side of the pictures in pixels")
    p.add_argument("--embedder", default="models/clip/emoji", help=f"with {beside}: open_clip folder or architecture")
    p.add_argument("--pretrained", help=f"with {beside}: open_clip's name of the weights")
    add_trust_option(p)
    p.add_argument("overrides", nargs="*", help="with --config: entries of it as key.path=value")


def add_sampling_options(parser: argparse.ArgumentParser, *, outdir: str, n_samples: int) -> None:
    """Adds what the scripts that sample share."""
    p = parser
    p.add_argument("--outdir", type=folder, default=outdir, help="folder for images, grid and JSON record")
    add_model_options(p)
    p.add_argument("--n_samples", type=positive, default=n_samples, help="images of each query")
    p.add_argument("--n_iter", type=positive, default=1, help="rounds: so many times --n_samples, seeds count on")
    p.add_argument("--n_rows", type=positive, metavar="N", help="a grid of the images alone, N in a row")
    p.add_argument(
        *names("--save_neighbours"), action="store_true", help="write the neighbours' pictures as files, too"
    )
    copies = p.add_mutually_exclusive_group()
    copies.add_argument(
        "--reject-copies",
        type=positive,
        nargs="?",
        const=5,
        default=0,
        metavar="TIMES",
        help="draw an image that is marked as a copy again, at most so often (5 where no number is given)",
    )
    copies.add_argument("--no_copy_check", action="store_true", help="do not compare the images with the database")
    p.add_argument(
        "--copy_threshold",
        type=finite,
        help="likeness to a row from which an image is marked as its copy; else what fits the shipped model",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds which model makes images, of which database, and how."""
    p = parser
    p.add_argument("--ckpt", help="checkpoint or run folder; else the newest run of --model, else the shipped model")
    p.add_argument(
        "--model", dest="ckpt", choices=("rdm", "rarm"), help="the diffusion (rdm) or the autoregressive model (rarm)"
    )
    p.add_argument("--config", help="config of the model; else the one beside the checkpoint")
    p.add_argument("--database", help="another database than the model's, made by the same embedder")
    p.add_argument(
        "--only", action="append", default=[], metavar="COLUMN=VALUE", help="neighbours from such rows alone"
    )
    p.add_argument("--H", type=positive, help="height in pixels; else as trained")
    p.add_argument("--W", type=positive, help="width in pixels; else as trained")
    p.add_argument(*names("--knn"), type=positive, default=4, help="neighbours of each image")
    p.add_argument(*names("--scale"), type=finite, default=2.0, help="guidance scale, 1 for none")
    p.add_argument("--rescale", type=fraction, help="bring guided contrast back by this share, 0 to 1")
    p.add_argument("--interval", type=int, nargs=2, metavar=("FIRST", "LAST"), help="guide at these times alone")
    p.add_argument("--weaker", metavar="CKPT", help="a weaker checkpoint to be led away from (autoguidance)")
    p.add_argument("--weaker_scale", type=finite, help="how far, 1 for not at all")
    p.add_argument(*names("--steps"), type=positive, help="denoising steps; else as many as the sampler needs")
    p.add_argument("--sampler", help="ddim, ddpm, plms, heun, dpmpp_2m, dpmpp_2m_sde or unipc (what is usual)")
    p.add_argument(
        "--plms", action="store_const", dest="sampler", const="plms", default=argparse.SUPPRESS, help="--sampler plms"
    )
    p.add_argument("--spacing", help="of the steps: uniform, trailing, karras or quad")
    p.add_argument(*names("--ddim_eta"), type=fraction, help="fresh noise in each step, 0 to 1; else the sampler's own")
    p.add_argument("--temperature", type=finite, help="rarm: of the codes, 0 for the likeliest of each")
    p.add_argument("--top_k", type=positive, help="rarm: choose among so many likeliest codes")
    p.add_argument("--top_p", type=fraction, help="rarm: choose among the likeliest codes of this probability together")
    p.add_argument("--seed", type=seed_number, default=0, help="of the first image; the next ones count on")
    p.add_argument(
        "--best_of",
        type=positive,
        default=1,
        metavar="N",
        help="draw N images for each, with further seeds, and keep the one nearest to the request by CLIP",
    )
    p.add_argument("--batch_size", type=positive, help="images sampled together; else 1 (rarm: 4) on a CPU, 8 on a GPU")
    add_tile_option(p)
    p.add_argument(
        "--precision", choices=PRECISIONS, default="32", help="of the networks; bf16 is faster on processors with it"
    )
    p.add_argument("--compile", action="store_true", help="compile the networks: minutes at first, then faster")
    p.set_defaults(**DIFFUSION, **AUTOREGRESSION)
    add_trust_option(p)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options as keyword arguments of ``rdm.sampling.samples.sample_retrieved``."""
    from rdm.sampling.copies import THRESHOLD, CopyCheck

    threshold = THRESHOLD if args.copy_threshold is None else args.copy_threshold
    return {"copies": None if args.no_copy_check else CopyCheck(threshold, args.reject_copies), **model_options(args)}


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns those of :func:`add_model_options` alone."""
    return {
        "height": args.H,
        "width": args.W,
        "scale": args.scale,
        "steps": args.steps,
        "sampler": args.sampler,
        "eta": args.ddim_eta,
        "spacing": args.spacing,
        "rescale": args.rescale,
        "interval": args.interval,
        "weaker": args.weaker,
        "weaker_scale": args.weaker_scale,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "best_of": args.best_of,
        "batch_size": args.batch_size,
        "tile": args.tile,
        "compile": args.compile,
        "precision": args.precision,
    }


def saving_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options as keyword arguments of ``rdm.sampling.record.save``."""
    return {"per_row": args.n_rows, "neighbours": args.save_neighbours}


def own_options(options: Mapping[str, Any], autoregressive: bool) -> dict[str, Any]:
    """Returns the options that a kind of model takes: those of the other kind are left out where they ask for nothing.

    Args:
        options: by name, of :data:`DIFFUSION`, :data:`AUTOREGRESSION` or any other.
        autoregressive: whether the model is.

    Raises:
        ValueError: one of the other kind asks for something.
    """
    foreign = DIFFUSION if autoregressive else AUTOREGRESSION
    for name, nothing in foreign.items():
        if options.get(name, nothing) != nothing:
            kinds = ("a diffusion model", "an autoregressive model")
            one, other = kinds if autoregressive else kinds[::-1]
            raise ValueError(f"got {name}={options[name]}, which is for {one}, but this is {other}; leave it out")
    return {name: value for name, value in options.items() if name not in foreign}
