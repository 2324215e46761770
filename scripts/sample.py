"""Unconditional samples: neighbours of popular database rows condition the model (Blattmann et al. 2022, section 3.2).

Of a plain latent diffusion model, they are samples without neighbours.
Other options replace the random rows: --image makes variations of a picture, --rows makes images of database rows,
and --caption makes images of a text and its --knn - 1 nearest neighbours, as CompVis' script of this name does.
--from-image makes an image again from the record that it carries.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, fraction_or_count
from rdm.cli.sampling import add_sampling_options, saving_options
from rdm.sampling.settings import TOP_M, Settings

if TYPE_CHECKING:
    from rdm.sampling.pipeline import Pipeline
    from rdm.sampling.request import Request


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    what = "draw from the most popular rows: a fraction (0.2) or a number (500)"
    p.add_argument("--top_m", type=fraction_or_count, default=TOP_M, help=what)
    p.add_argument("--use_weights", action="store_true", help="draw rows in proportion to their popularity")
    of = p.add_mutually_exclusive_group()
    of.add_argument("--caption", metavar="TEXT", help="images of a text, which counts as one of its neighbours")
    of.add_argument("--image", metavar="FILE", help="variations: images of the neighbours of this picture")
    of.add_argument("--rows", type=int, nargs="+", metavar="ROW", help="images of these rows of the database")
    of.add_argument("--from-image", metavar="PNG", help="make this image again from its record, with its own settings")
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--only_caption", action="store_true", help="with --caption: the model sees the text alone")
    seen.add_argument(
        "--omit_query", action="store_true", help="with --caption: the model sees the --knn neighbours alone"
    )
    seen.add_argument("--only_picture", action="store_true", help="with --image: the model sees the picture alone")
    seen.add_argument(
        "--use_query", action="store_true", help="with --image: the model sees the picture and then its neighbours"
    )
    add_sampling_options(p, outdir="outputs/sample", n_samples=8)
    return p.parse_args()


def request_of(pipeline: Pipeline, args: argparse.Namespace) -> Request:
    """Returns what the command line asks for."""
    from rdm.sampling import ways

    n, common = args.n_samples * args.n_iter, {"k": args.knn, "seed": args.seed}
    if args.rows:
        return ways.rows(pipeline, args.rows, n, seed=args.seed)
    if args.image:
        tokens = "picture" if args.only_picture else "both" if args.use_query else "neighbours"
        return ways.image(pipeline, args.image, n, tokens=tokens, **common)
    if args.caption is not None:
        k = args.knn or pipeline.k
        alone = args.only_caption or (k <= 1 and not args.omit_query)
        tokens = "text" if alone else "neighbours" if args.omit_query else "both"
        k = k - 1 if tokens == "both" else k
        return ways.texts(pipeline, [args.caption] * n, k=k, seed=args.seed, tokens=tokens)
    return ways.popular(pipeline, n, top_m=args.top_m, weighted=args.use_weights, **common)


@command_line
def main() -> None:
    """Samples ``--n_samples`` images."""
    args = parse()
    if args.caption is None and (args.only_caption or args.omit_query):
        raise ValueError("got --only_caption or --omit_query, expected --caption TEXT with it")
    if args.image is None and (args.only_picture or args.use_query):
        raise ValueError("got --only_picture or --use_query, expected --image FILE with it")
    if args.from_image and args.best_of > 1:
        raise ValueError("got --best_of with --from-image, expected it alone: its record says which image was kept")
    settings = Settings.of_command_line(vars(args))
    import rdm
    from rdm.sampling.record import make_again, read_record, save
    from rdm.sampling.samples import sample

    if args.from_image:
        samples, pipeline = make_again(read_record(args.from_image), args.ckpt, args.database)
    else:
        pipeline = rdm.load(args.ckpt, args.database, args.only, args.config, args.same_outline)
        samples = sample(pipeline, request_of(pipeline, args), settings)
    print(save(samples, pipeline, args.outdir, "again" if args.from_image else "sample", **saving_options(args)))


if __name__ == "__main__":
    main()
