"""Unconditional samples: neighbours of popular database rows condition the model (Blattmann et al. 2022, section 3.2).

A plain latent diffusion model samples without neighbours. Other options replace the random rows: --image makes
variations of a picture, --rows makes images of database rows and pictures, and --caption makes images of a text and its
--knn - 1 nearest neighbours, as CompVis' script of this name does. --from-image makes an image again from its record.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ldm.command_line import ArgumentParser, HelpFormatter, command_line
from rdm.cli.sampling import add_sampling_options, argument, loading_options, saving_options
from rdm.sampling.settings import Settings
from rdm.sampling.values import TOP_M, whole_or_text

if TYPE_CHECKING:
    from rdm.sampling.pipeline import Pipeline
    from rdm.sampling.request import Request


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("--top_m", type=argument("top_m"), default=TOP_M, help="draw from this number or share of all rows")
    p.add_argument("--use_weights", action="store_true", help="draw rows in proportion to their popularity")
    of = p.add_mutually_exclusive_group()
    of.add_argument("--caption", metavar="TEXT", help="images of a text, which counts as one of its neighbours")
    of.add_argument("--image", metavar="FILE", help="variations: images of the neighbours of this picture")
    what = "images of these rows of the database, and of pictures in files, all of them together"
    of.add_argument("--rows", type=whole_or_text, nargs="+", metavar="ROW", help=what)
    of.add_argument("--from-image", metavar="PNG", help="make this image again from its record, with its own settings")
    seen = p.add_mutually_exclusive_group()
    for name, what in {
        "only_caption": "with --caption: the model sees the text alone",
        "omit_query": "with --caption: the model sees the --knn neighbours alone",
        "only_picture": "with --image: the model sees the picture alone",
        "use_query": "with --image: the model sees the picture and then its neighbours",
    }.items():
        seen.add_argument(f"--{name}", action="store_true", help=what)
    add_sampling_options(p, outdir="outputs/sample", n_samples=8)
    return p.parse_args()


def request_of(pipeline: Pipeline, args: argparse.Namespace) -> Request:
    """Returns what the command line asks for."""
    from rdm.sampling import ways

    n, common = args.n_samples * args.n_iter, {"k": args.knn, "seed": args.seed}
    if args.rows:
        return ways.rows(pipeline, args.rows, n, seed=args.seed)
    if args.image is not None:
        tokens = "picture" if args.only_picture else "both" if args.use_query else "neighbours"
        return ways.image(pipeline, args.image, n, tokens=tokens, **common)
    if args.caption is not None:
        k = args.knn or pipeline.k
        tokens = "neighbours" if args.omit_query else "text" if args.only_caption or k <= 1 else "both"
        common["k"] = k - 1 if tokens == "both" else args.knn
        return ways.texts(pipeline, [args.caption] * n, tokens=tokens, **common)
    return ways.popular(pipeline, n, top_m=args.top_m, weighted=args.use_weights, **common)


@command_line
def main() -> None:
    """Samples ``--n_samples`` images."""
    args = parse()
    if (args.top_m != TOP_M or args.use_weights) and (args.caption or args.image or args.rows or args.from_image):
        raise ValueError("got --top_m or --use_weights, expected neither with another option that says what to make")
    if args.rows and (args.knn or args.only):
        raise ValueError("got --knn or --only with --rows, expected --rows alone, as nothing is looked up")
    if args.from_image and args.best_of > 1:
        raise ValueError("got --best_of with --from-image, expected it alone: its record says which image was kept")
    settings, saving = Settings.of_command_line(vars(args)), saving_options(args)
    import rdm
    from rdm.sampling.record import make_again, read_record, save
    from rdm.sampling.samples import sample_batches

    if args.from_image:
        moved = (args.ckpt or args.generator, args.database, args.adapter)
        again, pipeline = make_again(read_record(args.from_image), *moved)
        print(save(again, pipeline, args.outdir, "again", **saving))
    else:
        pipeline = rdm.load(**loading_options(args))
        samples = sample_batches(pipeline, request_of(pipeline, args), settings)
        print(save(samples, pipeline, args.outdir, "sample", **saving))


if __name__ == "__main__":
    main()
