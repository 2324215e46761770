"""Images of a class: neighbours are drawn from a pool around the class name's text (Blattmann et al. 2022, 3.2).

With --by label: a row that is stored under the class, and the rows of the class that are nearest to it.
"""

from __future__ import annotations

import argparse

from ldm.command_line import command_line
from rdm.cli.sampling import add_sampling_options, positive, sampling_options, saving_options


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(
        "--class",
        dest="classes",
        action="append",
        required=True,
        metavar="NAME",
        help="e.g. animal-bird; several times",
    )
    p.add_argument("--by", choices=("text", "label"), default="text", help="what finds the rows of a class")
    p.add_argument("--pool", type=positive, default=20, help="with --by text: draw neighbours from so many")
    add_sampling_options(p, outdir="outputs/class2img", n_samples=8)
    return p.parse_args()


@command_line
def main() -> None:
    """Samples ``--n_samples`` images of every class."""
    args = parse()
    if args.by == "text" and args.pool < args.knn:
        raise ValueError(f"got --pool {args.pool}, expected at least --knn, which is {args.knn}")
    from rdm.loading import load
    from rdm.retrieval.classes import resolve_class
    from rdm.sampling.record import save
    from rdm.sampling.samples import sample_classes

    loaded = load(args.ckpt, args.database, args.only, args.config)
    names = [resolve_class(name, loaded.retriever.database) for name in args.classes]
    repeated = [name for name in names for _ in range(args.n_samples)] * args.n_iter
    options = sampling_options(args) | {"k": args.knn, "pool": args.pool, "by": args.by, "seed": args.seed}
    samples = sample_classes(loaded, repeated, **options)
    print(save(samples, loaded, args.outdir, "class2img", **saving_options(args)))


if __name__ == "__main__":
    main()
