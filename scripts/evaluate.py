"""Figures of a model, and beside them all it takes to get them again: results.json and pictures."""

from __future__ import annotations

import argparse

from ldm.util import add_trust_option, command_line
from rdm.options import add_memorisation, add_tile_option, folder, model_options, positive


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_reconstruction(commands)
    add_memorisation(commands).set_defaults(run=run_memorisation)
    return p.parse_args()


def add_reconstruction(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the report on a first stage."""
    what = "PSNR, SSIM, perceptual distance, rFID and codebook use of a first stage, and a picture"
    p = commands.add_parser(
        "reconstruction", help=what, description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
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
    p.set_defaults(run=run_reconstruction)


def run_reconstruction(args: argparse.Namespace) -> None:
    """Writes the report and prints its figures."""
    from ldm.models.first_stage import load_first_stage
    from rdm.evaluate import reconstruction

    given = {name: value for name, value in vars(args).items() if name not in ("run", "command", "trust")}
    report = reconstruction(load_first_stage(args.model, args.config), given)
    for name, value in report["figures"].items():
        print(f"{name:12s}{value:.4f}" if isinstance(value, float) else f"{name:12s}{value}")
    print(f"{args.outdir}/results.json")


def run_memorisation(args: argparse.Namespace) -> None:
    """Writes the report and prints what it comes to."""
    from rdm.loading import load
    from rdm.memorisation import memorisation, summary

    given = {name: value for name, value in vars(args).items() if name not in ("run", "command", "trust")}
    loaded = load(args.checkpoint or args.ckpt, args.database, args.only, args.config)
    report = memorisation(loaded, given, model_options(args))
    print("\n".join([*summary(report), f"{args.outdir}/results.json"]))


@command_line
def main() -> None:
    """Runs the command."""
    args = parse()
    args.run(args)


if __name__ == "__main__":
    main()
