"""The command-line options of ``scripts/evaluate.py``. The module imports no torch, so ``--help`` answers at once."""

from __future__ import annotations

import argparse
from typing import Any

from ldm.command_line import HelpFormatter, add_trust_option, folder, pixels_or_memory, positive
from rdm.cli.sampling import add_model_options, argument
from rdm.evaluate.choices import METRICS, WAYS
from rdm.sampling.settings import OPTIONS
from rdm.sampling.values import TOP_M

Commands = argparse._SubParsersAction  # the type that add_subparsers returns
SPLIT = "split to read from Parquet files{}, such as train or val"
POPULAR = "without prompts: share or number of the most popular database rows to sample from"
TOKENS: dict[str, Any] = {
    "default": "neighbours",
    "choices": ("neighbours", "text", "both"),
    "help": "context of the model for a prompt: its neighbours, its text embedding, or both",
}
METRICS_HELP = f"metrics to compute: {', '.join(METRICS)}; all that the inputs allow if not given"


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a command by name, as its report stores them."""
    return {name: value for name, value in vars(args).items() if name not in ("run", "command", "trust")}


def _command(commands: Commands, name: str, what: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=what, description=what, formatter_class=HelpFormatter)


def add_images(commands: Commands) -> argparse.ArgumentParser:
    """Adds the command that measures pictures in files."""
    p = _command(
        commands, "images", "measures pictures in files against a reference set: FID, KID, precision, recall and others"
    )
    p.add_argument("path", help="folder of pictures, Parquet files or tar shards")
    p.add_argument("--split", help=SPLIT.format(""))
    p.add_argument(
        "--size",
        type=argument("size"),
        metavar="PIXELS",
        help="side in pixels of all pictures, or HEIGHTxWIDTH; the shorter side of the first one if not given",
    )
    p.add_argument("--n", type=positive, help="number of pictures, spread evenly over the set; all if not given")
    _add_comparison(p, "outputs/images")
    add_trust_option(p)
    return p


def add_samples(commands: Commands) -> argparse.ArgumentParser:
    """Adds the command that samples a model and measures its images."""
    p = _command(commands, "samples", "samples images from a model and measures them against a reference set")
    p.add_argument(
        "--n", type=positive, help="number of images; if not given, one for each prompt, or 1000 without prompts"
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument(
        "--from-file",
        metavar="FILE",
        help="text file with one prompt in each line; prompts are reused from the first on if --n is larger",
    )
    what.add_argument("--captions", metavar="PATH", help="pictures whose captions are the prompts")
    p.add_argument("--captions_split", help=SPLIT.format(" of --captions"))
    p.add_argument("--tokens", **TOKENS)
    p.add_argument("--top_m", type=argument("top_m"), default=TOP_M, help=POPULAR)
    p.add_argument(
        "--use_weights",
        action="store_true",
        help="without prompts: draw database rows in proportion to their popularity, not uniformly",
    )
    _add_comparison(p, "outputs/samples")
    add_model_options(p)
    return p


def _add_comparison(p: argparse.ArgumentParser, outdir: str) -> None:
    """Adds the reference set, the feature networks and the metrics."""
    p.add_argument("--reference", metavar="PATH", help="reference set: folder of pictures, Parquet files or tar shards")
    p.add_argument("--reference_split", help=SPLIT.format(" of --reference"))
    p.add_argument(
        "--reference_n",
        type=positive,
        help="number of reference pictures, spread evenly over the set; all if not given",
    )
    p.add_argument(
        "--features",
        nargs="+",
        default=["unit:models/clip/emoji"],
        help="feature networks: 'inception' or inception:FILE (FID's Inception), NETWORK:FILE (a torchvision "
        "network with its weights), or a CLIP model as a folder or MODEL:PRETRAINED of open_clip; the prefix "
        "'unit:' scales the features to length one",
    )
    p.add_argument("--metrics", nargs="+", choices=METRICS, metavar="NAME", help=METRICS_HELP)
    p.add_argument(
        "--kid_size",
        type=positive,
        help="pictures in each subset of the kernel distance (KID); if not given, 1000 or half of the smaller set",
    )
    p.add_argument("--num_workers", type=int, default=0, help="number of worker processes that read pictures")
    p.add_argument(
        "--cache",
        default="outputs/features",
        help="folder that keeps the features; later runs reuse them, and an interrupted extraction continues",
    )
    p.add_argument("--outdir", type=folder, default=outdir, help="output folder for results.json")


def add_repeat(commands: Commands) -> argparse.ArgumentParser:
    """Adds the command that repeats a report."""
    p = _command(
        commands, "repeat", "repeats a report of 'images' or 'samples' from its own protocol and compares the figures"
    )
    p.add_argument("results", metavar="results.json", help="report to repeat")
    add_trust_option(p)
    return p


def add_reconstruction(commands: Commands) -> argparse.ArgumentParser:
    """Adds the command that measures the reconstructions of a first stage."""
    p = _command(
        commands,
        "reconstruction",
        "measures the reconstructions of a first stage: PSNR, SSIM, perceptual distance, rFID and codebook usage",
    )
    p.add_argument(
        "model",
        help="first stage: run folder, models/first_stage/NAME or checkpoint; or a diffusion model that contains one",
    )
    p.add_argument("--config", help="config of the model; the one next to the checkpoint if not given")
    p.add_argument(
        "--data",
        metavar="PATH",
        help="pictures to reconstruct: folder, Parquet files or tar shards; if not given, the config's validation set",
    )
    p.add_argument("--split", help=SPLIT.format(""))
    p.add_argument(
        "--size",
        type=argument("size"),
        metavar="PIXELS",
        help="side in pixels of all pictures, or HEIGHTxWIDTH; that of the config if not given",
    )
    p.add_argument("--n", type=positive, help="number of pictures, from the first on; all if not given")
    p.add_argument(
        "--by",
        metavar="KEY",
        help="metadata column, such as style; the report then also has the figures of each of its values",
    )
    p.add_argument(
        "--perceptual",
        default="models/clip/emoji",
        help="network of the perceptual distance: a CLIP model (folder or MODEL:PRETRAINED), LPIPS (file with the "
        "weights of VGG16, or 'download'), a torchvision network (NETWORK:FILE, such as resnet18:resnet18.pth), "
        "or 'none'",
    )
    p.add_argument(
        "--features",
        default="models/clip/emoji",
        help="CLIP model whose features the rFID uses: a folder or open_clip's MODEL:PRETRAINED; or 'none'",
    )
    p.add_argument("--tile", type=pixels_or_memory, metavar="SIDE", help=OPTIONS["tile"].what)
    p.add_argument("--batch_size", type=positive, default=16, help="number of pictures that are reconstructed together")
    p.add_argument("--num_workers", type=int, default=0, help="number of worker processes that read pictures")
    p.add_argument(
        "--rows",
        type=positive,
        default=8,
        help="number of examples in reconstruction.png, each with input, reconstruction and their difference times 4",
    )
    p.add_argument(
        "--outdir",
        type=folder,
        default="outputs/reconstruction",
        help="output folder for results.json and reconstruction.png",
    )
    add_trust_option(p)
    return p


def add_memorisation(commands: Commands) -> argparse.ArgumentParser:
    """Adds the command that measures memorisation."""
    what = "measures how similar samples are to their nearest database rows and training pictures (memorisation)"
    p = _command(commands, "memorisation", what)
    p.add_argument("checkpoint", nargs="?", metavar="MODEL", help="the same as --ckpt MODEL")
    p.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder of existing samples, such as the output of a sampling script; if not given, the model is sampled",
    )
    p.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=WAYS[:1],
        help="how to sample: popular (unconditional, from popular rows), captions (prompts are the captions of "
        "held-out pictures), or both",
    )
    p.add_argument(
        "--n",
        type=positive,
        help="number of samples for each of --ways (256 if not given), or of --images (all if not given)",
    )
    p.add_argument(
        "--n_real",
        type=positive,
        default=1000,
        help="largest number of held-out pictures and of training pictures to compare with",
    )
    p.add_argument(
        "--rows", type=positive, default=8, help="number of most similar pairs in worst.png, for each feature"
    )
    p.add_argument("--top_m", type=argument("top_m"), default=TOP_M, help=POPULAR)
    p.add_argument(
        "--outdir",
        type=folder,
        default="outputs/memorisation",
        help="output folder for the samples, results.json and the plots",
    )
    add_model_options(p)
    return p


def add_concepts(commands: Commands) -> argparse.ArgumentParser:
    """Adds the command that measures how often a sample shows its prompt."""
    what = "samples concepts by name and measures how often a classifier of pixels, the judge, recognises them"
    p = _command(commands, "concepts", what)
    p.add_argument("checkpoint", nargs="?", metavar="MODEL", help="the same as --ckpt MODEL")
    p.add_argument(
        "--judge",
        metavar="FOLDER",
        default="models/judge/emoji",
        help="the judge: the folder 'judge' of a run of configs/judge/emoji.yaml, or a copy of it",
    )
    p.add_argument(
        "--data",
        metavar="PATH",
        help="Parquet files with the columns concept, name and split; if not given, those that trained the judge",
    )
    p.add_argument(
        "--n",
        type=positive,
        default=100,
        help="number of trained concepts and of held-out concepts, each spread evenly; one sample of each is made",
    )
    p.add_argument(
        "--n_real",
        type=positive,
        default=500,
        help="largest number of real pictures, which the judge never saw, and of their reconstructions",
    )
    p.add_argument("--tokens", **TOKENS)
    p.add_argument(
        "--outdir",
        type=folder,
        default="outputs/concepts",
        help="output folder for the samples, results.json and a grid of each group",
    )
    add_model_options(p)
    return p
