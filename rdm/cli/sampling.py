"""The command-line options of the sampling scripts; those of the sampler come from ``rdm.sampling.settings``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any

from ldm.command_line import add_trust_option, folder
from rdm.sampling.settings import AUTOREGRESSION, DEFAULTS, DIFFUSERS, DIFFUSION, OPTIONS
from rdm.sampling.signing import read_key
from rdm.sampling.values import ARGUMENTS, Value

COPIES = ("copy_threshold", "reject_copies")  # settings of copy detection, in a group of their own
TITLES = {
    None: "sampling",
    DIFFUSION: "sampling with a diffusion model",
    AUTOREGRESSION: "sampling with an autoregressive model",
}


def add_sampling_options(
    parser: argparse.ArgumentParser,
    *,
    outdir: str,
    n_samples: int,
    counted: str = "images",
    without: Collection[str] = (),
) -> None:
    """Adds the options that all sampling scripts share.

    Args:
        parser: the parser of the script.
        outdir: the default of ``--outdir``.
        n_samples: the default of ``--n_samples``.
        counted: what ``--n_samples`` is the number of, for its help text.
        without: names of settings that the script cannot use; they get no option.
    """
    p = parser.add_argument_group("output")
    p.add_argument("--n_samples", type=argument("n_samples"), default=n_samples, help=f"number of {counted}")
    p.add_argument(
        "--n_iter",
        type=argument("n_iter"),
        default=1,
        help="number of rounds of --n_samples images; the seeds continue",
    )
    p.add_argument("--outdir", type=folder, default=outdir, help="folder for the images, the grid and the JSON record")
    p.add_argument(
        "--n_rows",
        type=argument("n_rows"),
        metavar="N",
        help="make the grid of the images without their neighbours, with N images in a row",
    )
    p.add_argument(
        "--save_neighbours",
        "--save_nns",
        action="store_true",
        help="also write the pictures of the neighbours as files",
    )
    p.add_argument("--sign", metavar="KEYFILE", help="sign the images and their records with this key, see verify.py")
    add_model_options(parser, without)
    add_generator_options(parser)
    p = parser.add_argument_group("copies of database rows")
    for name in COPIES:
        _add(p, name)
    p.add_argument(
        "--no_copy_check",
        dest="copy_threshold",
        action="store_const",
        const=None,
        default=argparse.SUPPRESS,
        help="do not compare the images with the database",
    )


def add_model_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Adds the options of the model, its database and the sampler, without those of some settings."""
    p = parser.add_argument_group("model and database")
    p.add_argument(
        "--ckpt", help="a checkpoint or run folder; if not given, the newest run of --model, else the shipped model"
    )
    p.add_argument(
        "--model",
        dest="ckpt",
        choices=("rdm", "rarm", "ldm"),
        help="the newest or the shipped model of a kind: the diffusion model (rdm) or the autoregressive one (rarm), "
        "which edit.py refuses; or the newest run of a plain latent diffusion model (ldm), of which none is shipped",
    )
    p.add_argument("--config", help="the config of the model; if not given, the one beside the checkpoint")
    p.add_argument("--database", help="another database than the model's, made with the same CLIP")
    p.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="take neighbours only from rows with this metadata, such as licence=MIT; may be given several times",
    )
    p.add_argument(
        "--knn",
        "--k_nn",
        type=argument("knn"),
        help="number of neighbours of each image; if not given, as many as in training",
    )
    p.add_argument(
        "--same_outline",
        type=argument("same_outline"),
        metavar="L",
        help="leave out a neighbour whose outline correlates at least this much with that of a nearer one, so that all "
        "are different pictures; if not given, as in training; above 1, leave out none",
    )
    p.add_argument(
        "--agree",
        type=argument("agree"),
        metavar="M",
        help="the neighbours after the first are those whose outlines agree most with the first, among the M nearest "
        "rows; if not given, as the model's config says; 1 takes the nearest ones",
    )
    add_trust_option(parser)
    for kind, title in TITLES.items():
        p = parser.add_argument_group(title)  # --help leaves out a group without options
        if kind is None:
            p.add_argument(
                "--seed",
                type=argument("seed"),
                default=0,
                help="seed of the first image; image i has the seed --seed + i",
            )
        for name, known in OPTIONS.items():
            if known.group == kind and name not in (*COPIES, *without):
                _add(p, name)
        if kind == DIFFUSION:
            p.add_argument(
                "--plms",
                action="store_const",
                dest="sampler",
                const="plms",
                default=argparse.SUPPRESS,
                help="short for --sampler plms",
            )


def add_generator_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a pipeline of diffusers in the place of a model."""
    p = parser.add_argument_group("a pipeline of diffusers in the place of a model")
    p.add_argument("--generator", metavar="FOLDER", help="the pipeline: its folder, or its name on the hub")
    p.add_argument("--adapter", metavar="FILE", help="the IP-Adapter that shows it the neighbours")
    encoder = "the adapter's image encoder, if it is not beside it; 'database' for the embedder of the database"
    p.add_argument("--image_encoder", metavar="FOLDER", help=encoder)
    for name, known in OPTIONS.items():
        if known.group == DIFFUSERS:
            _add(p, name)


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of model and database as keyword arguments of ``rdm.load``."""
    names = ("database", "only", "config", "same_outline", "agree", "generator", "adapter", "image_encoder")
    return {"checkpoint": args.ckpt, **{name: getattr(args, name) for name in names}}


def _add(group: argparse._ArgumentGroup, name: str) -> None:
    """Adds the command-line option of a setting."""
    known, more = OPTIONS[name], dict(OPTIONS[name].command_line)
    if isinstance(more.get("nargs"), int):
        more["type"] = known.value.read
    elif "action" not in more:
        more["type"] = reader(name, known.value)
    flags = known.flags or (f"--{name}",)
    group.add_argument(*flags, dest=name, default=DEFAULTS[name], help=known.what, **more)


def reader(name: str, value: Value) -> Callable[[str], Any]:
    """Returns a function that converts a word of the command line to a value of an option."""

    def read(text: str) -> Any:
        try:
            return value.of_word(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def argument(name: str) -> Callable[[str], Any]:
    """Returns a function that converts a word of the command line to an argument of a request."""
    return reader(name, ARGUMENTS[name])


def saving_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options as keyword arguments of ``rdm.sampling.record.save``; call it before sampling.

    Raises:
        FileNotFoundError: there is no key file.
        ValueError: the file is no key file.
    """
    key = None if args.sign is None else read_key(args.sign)
    return {"per_row": args.n_rows, "neighbours": args.save_neighbours, "key": key}
