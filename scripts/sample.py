"""Images of nothing in particular: neighbours of rows drawn by how popular they are (Blattmann et al. 2022, 3.2).

With --caption, as CompVis' script of this name: images of a text and its --knn - 1 nearest neighbours.
With --image or --rows: variations of a picture, or images of rows of the database. With --from-image: the image that
another one's record describes, made again.
"""

from __future__ import annotations

import argparse

from ldm.command_line import command_line
from rdm.cli.sampling import add_sampling_options, fraction_or_count, sampling_options, saving_options


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(
        "--top_m",
        type=fraction_or_count,
        default=0.2,
        help="draw from the most popular rows: a fraction (0.2) or a number (500)",
    )
    p.add_argument("--use_weights", action="store_true", help="draw in proportion to popularity")
    of = p.add_mutually_exclusive_group()
    of.add_argument("--caption", metavar="TEXT", help="images of a text, which counts as one of its neighbours")
    of.add_argument("--image", metavar="FILE", help="variations: images of the neighbours of this picture")
    of.add_argument("--rows", type=int, nargs="+", metavar="ROW", help="images of these rows of the database")
    of.add_argument(
        "--from-image", metavar="PNG", help="make this image again from its own record; all settings are its"
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument("--only_caption", action="store_true", help="with --caption: of the text alone")
    what.add_argument("--omit_query", action="store_true", help="with --caption: of its --knn neighbours alone")
    what.add_argument("--only_picture", action="store_true", help="with --image: of the picture alone")
    what.add_argument("--use_query", action="store_true", help="with --image: of the picture and then its neighbours")
    add_sampling_options(p, outdir="outputs/sample", n_samples=8)
    return p.parse_args()


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
    from rdm.loading import load
    from rdm.sampling.record import make_again, read_record, save
    from rdm.sampling.samples import sample_image, sample_popular, sample_rows, sample_texts

    if args.from_image:
        samples, loaded = make_again(read_record(args.from_image), args.ckpt, args.database)
        print(save(samples, loaded, args.outdir, "again", **saving_options(args)))
        return
    loaded = load(args.ckpt, args.database, args.only, args.config)
    options, n = sampling_options(args) | {"seed": args.seed}, args.n_samples * args.n_iter
    if args.rows:
        samples = sample_rows(loaded, args.rows, n, **options)
    elif args.image:
        tokens = "picture" if args.only_picture else "both" if args.use_query else "neighbours"
        samples = sample_image(loaded, args.image, n, k=args.knn, tokens=tokens, **options)
    elif args.caption is not None:
        alone = args.only_caption or (args.knn == 1 and not args.omit_query)
        tokens = "text" if alone else "neighbours" if args.omit_query else "both"
        k = args.knn - 1 if tokens == "both" else args.knn
        samples = sample_texts(loaded, [args.caption] * n, k=k, tokens=tokens, **options)
    else:
        options |= {"k": args.knn, "top_m": args.top_m, "weighted": args.use_weights}
        samples = sample_popular(loaded, n, **options)
    print(save(samples, loaded, args.outdir, "sample", **saving_options(args)))


if __name__ == "__main__":
    main()
