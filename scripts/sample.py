"""Images of nothing in particular: neighbours of rows drawn by how popular they are (Blattmann et al. 2022, 3.2).

With --image or --rows: images of a picture's neighbours, or of rows of the database. With --from-image: the image that
another one's record describes, made again.
"""

from __future__ import annotations

import argparse

from ldm.util import command_line
from rdm.options import add_sampling_options, fraction_or_count, sampling_options


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
    p.add_argument("--image", metavar="FILE", help="variations: images of the neighbours of this picture")
    p.add_argument("--rows", type=int, nargs="+", metavar="ROW", help="images of these rows of the database")
    p.add_argument(
        "--from-image", metavar="PNG", help="make this image again from its own record; all settings are its"
    )
    add_sampling_options(p, outdir="outputs/sample", n_samples=8)
    return p.parse_args()


@command_line
def main() -> None:
    """Samples ``--n_samples`` images."""
    args = parse()
    from rdm.loading import load
    from rdm.provenance import make_again, read_record, save
    from rdm.sample import sample_image, sample_popular, sample_rows

    if args.from_image:
        samples, loaded = make_again(read_record(args.from_image), args.ckpt, args.database)
        print(save(samples, loaded, args.outdir, "again"))
        return
    loaded = load(args.ckpt, args.database, args.only)
    options = sampling_options(args) | {"seed": args.seed}
    if args.rows:
        samples = sample_rows(loaded, args.rows, args.n_samples, **options)
    elif args.image:
        samples = sample_image(loaded, args.image, args.n_samples, k=args.knn, **options)
    else:
        options |= {"k": args.knn, "top_m": args.top_m, "weighted": args.use_weights}
        samples = sample_popular(loaded, args.n_samples, **options)
    print(save(samples, loaded, args.outdir, "sample"))


if __name__ == "__main__":
    main()
