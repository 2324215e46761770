"""The options of ``scripts/evaluate.py``; light to import, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse

from ldm.command_line import add_trust_option
from rdm.cli.sampling import add_model_options, add_tile_option, finite, folder, fraction_or_count, positive
from rdm.evaluate.choices import METRICS, WAYS

Commands = argparse._SubParsersAction  # the type of what add_subparsers returns


def _command(commands: Commands, name: str, what: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=what, description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_images(commands: Commands) -> argparse.ArgumentParser:
    """Adds the figures of pictures in files."""
    p = _command(commands, "images", "figures of pictures against a reference set")
    p.add_argument("path", help="folder of pictures, Parquet files or tar shards")
    p.add_argument("--split", help="of Parquet files")
    p.add_argument("--size", type=positive, help="side of all pictures in pixels; else that of the first one")
    p.add_argument("--n", type=positive, help="so many pictures, evenly spread; else all")
    _add_comparison(p, "outputs/images")
    add_trust_option(p)
    return p


def add_samples(commands: Commands) -> argparse.ArgumentParser:
    """Adds the figures of a model's images."""
    p = _command(commands, "samples", "figures of images that a model samples, against a reference set")
    p.add_argument("--n", type=positive, help="images; else one for each prompt, or 1000")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--from-file", metavar="FILE", help="of texts: a prompt in each line, again from the first")
    what.add_argument("--captions", metavar="PATH", help="of texts: the captions of the pictures there")
    p.add_argument("--captions_split", help="of Parquet files")
    p.add_argument(
        "--tokens", default="neighbours", choices=("neighbours", "text", "both"), help="of texts: the context"
    )
    p.add_argument("--text_scale", type=finite, help="with --tokens both: the text's own scale")
    p.add_argument("--top_m", type=fraction_or_count, default=0.2, help="without texts: of the most popular rows")
    p.add_argument("--use_weights", action="store_true", help="without texts: in proportion to popularity")
    _add_comparison(p, "outputs/samples")
    add_model_options(p)
    return p


def _add_comparison(p: argparse.ArgumentParser, outdir: str) -> None:
    """Adds what to compare with, by which features and figures."""
    p.add_argument("--reference", metavar="PATH", help="folder of pictures, Parquet files or tar shards")
    p.add_argument("--reference_split", help="of Parquet files")
    p.add_argument("--reference_n", type=positive, help="so many of them, evenly spread; else all")
    p.add_argument(
        "--features",
        nargs="+",
        default=["unit:models/clip/emoji"],
        help="networks: 'inception' or inception:FILE, torchvision's as NETWORK:FILE, a CLIP as a folder or "
        "MODEL:PRETRAINED; 'unit:' before any of them scales features to length one",
    )
    p.add_argument("--metrics", nargs="+", choices=METRICS, metavar="NAME", help=f"of {', '.join(METRICS)}; else all")
    p.add_argument("--kid_size", type=positive, help="pictures of a subset; else 1000, or half of the smaller set")
    p.add_argument("--num_workers", type=int, default=0, help="processes that read pictures")
    p.add_argument("--cache", default="outputs/features", help="folder of features, used again and continued")
    p.add_argument("--outdir", type=folder, default=outdir, help="folder for results.json")


def add_repeat(commands: Commands) -> argparse.ArgumentParser:
    """Adds the repetition of a report."""
    p = _command(commands, "repeat", "makes all of a report of 'images' or 'samples' again, and compares")
    p.add_argument("results", metavar="results.json", help="the report")
    add_trust_option(p)
    return p


def add_reconstruction(commands: Commands) -> argparse.ArgumentParser:
    """Adds the report on a first stage."""
    p = _command(
        commands,
        "reconstruction",
        "PSNR, SSIM, perceptual distance, rFID and codebook use of a first stage, and a picture",
    )
    p.add_argument("model", help="run folder, models/first_stage/NAME or a checkpoint; also of a diffusion model")
    p.add_argument("--config", help="config of a checkpoint that has none beside it")
    p.add_argument("--data", metavar="PATH", help="folder of pictures, Parquet files or tar shards; else the config's")
    p.add_argument("--split", help="of Parquet files")
    p.add_argument("--size", type=positive, help="side of the pictures in pixels; else that of the config")
    p.add_argument("--n", type=positive, help="take the first so many pictures; else all")
    p.add_argument("--by", metavar="KEY", help="also the figures of each group, e.g. style")
    p.add_argument(
        "--perceptual",
        default="models/clip/emoji",
        help="CLIP features: a folder or MODEL:PRETRAINED; LPIPS: a file of VGG16's weights or 'download'; "
        "torchvision's: NETWORK:FILE, e.g. resnet18:resnet18.pth; or 'none'",
    )
    p.add_argument(
        "--features",
        default="models/clip/emoji",
        help="of the rFID: a folder or open_clip's MODEL:PRETRAINED; or 'none'",
    )
    add_tile_option(p)
    p.add_argument("--batch_size", type=positive, default=16, help="pictures at once")
    p.add_argument("--num_workers", type=int, default=0, help="processes that read pictures")
    p.add_argument("--rows", type=positive, default=8, help="of the picture: input, reconstruction, 4 x difference")
    p.add_argument(
        "--outdir", type=folder, default="outputs/reconstruction", help="folder for results.json and the picture"
    )
    add_trust_option(p)
    return p


def add_memorisation(commands: Commands) -> argparse.ArgumentParser:
    """Adds the report on memorisation."""
    what = "how like samples are to their nearest rows and training pictures, beside real pictures and beside copies"
    p = _command(commands, "memorisation", what)
    p.add_argument("checkpoint", nargs="?", metavar="MODEL", help="short for --ckpt MODEL")
    p.add_argument(
        "--images", metavar="FOLDER", help="samples made already, such as a sampling script's; else new ones"
    )
    p.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:1], help="unconditional samples, or of captions")
    p.add_argument("--n", type=positive, help="samples of each way, or the first so many --images; else 256, or all")
    p.add_argument("--n_real", type=positive, default=1000, help="real pictures of each kind, at most")
    p.add_argument("--rows", type=positive, default=8, help="worst pairs of each feature in the picture")
    p.add_argument("--top_m", type=fraction_or_count, default=0.2, help="unconditional: of the most popular rows")
    p.add_argument(
        "--outdir", type=folder, default="outputs/memorisation", help="for samples, results.json and pictures"
    )
    add_model_options(p)
    return p
