"""The options of ``scripts/evaluate.py``; light to import, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse

from ldm.command_line import HelpFormatter, add_trust_option, folder, fraction_or_count, pixels_or_memory, positive
from rdm.cli.sampling import add_model_options
from rdm.evaluate.choices import METRICS, WAYS
from rdm.sampling.settings import OPTIONS, TOP_M

Commands = argparse._SubParsersAction  # the type of what add_subparsers returns


def _command(commands: Commands, name: str, what: str) -> argparse.ArgumentParser:
    sentence = what[0].upper() + what[1:] + "."
    return commands.add_parser(name, help=what, description=sentence, formatter_class=HelpFormatter)


def add_images(commands: Commands) -> argparse.ArgumentParser:
    """Adds the figures of pictures in files."""
    p = _command(commands, "images", "compare pictures in files with a reference set")
    p.add_argument("path", help="folder of pictures, of which all count, also grids; Parquet files; or tar shards")
    p.add_argument("--split", help="only the pictures of this split, of Parquet files")
    p.add_argument(
        "--size",
        type=positive,
        help="side in pixels to which pictures are scaled; that of the first picture if not given",
    )
    p.add_argument("--n", type=positive, help="number of pictures, evenly spread; all if not given")
    _add_comparison(p, "outputs/images")
    add_trust_option(p)
    return p


def add_samples(commands: Commands) -> argparse.ArgumentParser:
    """Adds the figures of a model's images."""
    p = _command(commands, "samples", "sample images from a model and compare them with a reference set")
    p.add_argument(
        "--n", type=positive, help="number of images; if not given, one for each prompt, or 1000 without prompts"
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument(
        "--from-file",
        metavar="FILE",
        help="sample from texts: a file with one prompt in each line; with more images than prompts, they repeat",
    )
    what.add_argument("--captions", metavar="PATH", help="sample from texts: the captions of the pictures at this path")
    p.add_argument("--captions_split", help="only the captions of this split, of Parquet files")
    p.add_argument(
        "--tokens", default="neighbours", choices=("neighbours", "text", "both"), help="with texts: what the model sees"
    )
    p.add_argument(
        "--top_m",
        type=fraction_or_count,
        default=TOP_M,
        help="without texts: draw from the most popular rows, a fraction (0.2) or a number (500)",
    )
    p.add_argument(
        "--use_weights", action="store_true", help="without texts: draw rows in proportion to their popularity"
    )
    _add_comparison(p, "outputs/samples")
    add_model_options(p)
    return p


def _add_comparison(p: argparse.ArgumentParser, outdir: str) -> None:
    """Adds what to compare with, by which features and figures."""
    p.add_argument(
        "--reference", metavar="PATH", help="pictures to compare with: a folder, Parquet files or tar shards"
    )
    p.add_argument("--reference_split", help="only the reference pictures of this split, of Parquet files")
    p.add_argument("--reference_n", type=positive, help="number of reference pictures, evenly spread; all if not given")
    p.add_argument(
        "--features",
        nargs="+",
        default=["unit:models/clip/emoji"],
        metavar="NETWORK",
        help="networks whose features are compared: 'inception' (for the standard FID), inception:FILE, a classifier "
        "of torchvision as NETWORK:FILE, or a CLIP as FOLDER or MODEL:PRETRAINED; 'unit:' before a name scales the "
        "features to length 1",
    )
    p.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="NAME",
        help=f"metrics, of {', '.join(METRICS)}; all that are possible if not given",
    )
    p.add_argument(
        "--kid_size",
        type=positive,
        help="pictures in each subset of the kernel distance; if not given, 1000 or half of the smaller set",
    )
    p.add_argument("--num_workers", type=int, default=0, help="processes that read pictures")
    p.add_argument(
        "--cache",
        default="outputs/features",
        help="folder that keeps features, so that an interrupted evaluation continues",
    )
    p.add_argument("--outdir", type=folder, default=outdir, help="folder for results.json")


def add_repeat(commands: Commands) -> argparse.ArgumentParser:
    """Adds the repetition of a report."""
    p = _command(
        commands,
        "repeat",
        "make a report of 'images' or 'samples' again from the settings in it, and say which figures differ",
    )
    p.add_argument("results", metavar="results.json", help="the report")
    add_trust_option(p)
    return p


def add_reconstruction(commands: Commands) -> argparse.ArgumentParser:
    """Adds the report on a first stage."""
    p = _command(
        commands,
        "reconstruction",
        "measure how well a first stage reconstructs pictures: PSNR, SSIM, perceptual distance, rFID, use of the codes",
    )
    p.add_argument(
        "model",
        help="run folder, models/first_stage/NAME or a checkpoint, of a first stage or of a model that contains one",
    )
    p.add_argument("--config", help="config of a checkpoint that has none beside it")
    p.add_argument(
        "--data", metavar="PATH", help="folder of pictures, Parquet files or tar shards; the config's if not given"
    )
    p.add_argument("--split", help="only the pictures of this split, of Parquet files")
    p.add_argument(
        "--size", type=positive, help="side in pixels to which pictures are scaled; that of the config if not given"
    )
    p.add_argument("--n", type=positive, help="number of pictures, from the first one on; all if not given")
    p.add_argument("--by", metavar="KEY", help="also report the figures of each group, such as style")
    p.add_argument(
        "--perceptual",
        default="models/clip/emoji",
        help="network of the perceptual distance: a CLIP as FOLDER or MODEL:PRETRAINED; LPIPS as a file of VGG16's "
        "weights or 'download'; a network of torchvision as NETWORK:FILE; or 'none'",
    )
    p.add_argument(
        "--features",
        default="models/clip/emoji",
        help="features of the rFID: a CLIP as FOLDER or MODEL:PRETRAINED, or 'none'",
    )
    p.add_argument("--tile", type=pixels_or_memory, metavar="SIDE", help=OPTIONS["tile"].what)
    p.add_argument("--batch_size", type=positive, default=16, help="pictures that are reconstructed at once")
    p.add_argument("--num_workers", type=int, default=0, help="processes that read pictures")
    p.add_argument(
        "--rows",
        type=positive,
        default=8,
        help="lines of the output picture, each with input, reconstruction and 4 x their difference",
    )
    p.add_argument(
        "--outdir", type=folder, default="outputs/reconstruction", help="folder for results.json and the picture"
    )
    add_trust_option(p)
    return p


def add_memorisation(commands: Commands) -> argparse.ArgumentParser:
    """Adds the report on memorisation."""
    what = (
        "measure how similar samples are to database rows and training pictures, compared with real pictures and copies"
    )
    p = _command(commands, "memorisation", what)
    p.add_argument("checkpoint", nargs="?", metavar="MODEL", help="the same as --ckpt MODEL")
    p.add_argument(
        "--images",
        metavar="FOLDER",
        help="images that are there already, such as those of a sampling script; new ones if not given",
    )
    p.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=WAYS[:1],
        help="sample unconditionally (popular), or from the captions of held-out pictures (captions)",
    )
    p.add_argument(
        "--n", type=positive, help="number of samples of each way, or of --images; if not given, 256, or all --images"
    )
    p.add_argument("--n_real", type=positive, default=1000, help="largest number of real pictures of each kind")
    p.add_argument(
        "--rows", type=positive, default=8, help="lines of the output picture, each with one of the most similar pairs"
    )
    p.add_argument(
        "--top_m",
        type=fraction_or_count,
        default=TOP_M,
        help="popular: draw from the most popular rows, a fraction (0.2) or a number (500)",
    )
    p.add_argument(
        "--outdir", type=folder, default="outputs/memorisation", help="folder for samples, results.json and pictures"
    )
    add_model_options(p)
    return p
