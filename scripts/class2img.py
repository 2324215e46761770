"""Class-to-image: images of a class, without a model that was trained on classes (Blattmann et al. 2022, section 3.2).

Neighbours are drawn from a pool of the database rows nearest to a sentence about the class. With --by label, they are
rows that are stored under the class. A plain model that was trained on classes sees the class itself.
"""

from __future__ import annotations

import argparse

from ldm.command_line import ArgumentParser, HelpFormatter, command_line
from rdm.cli.sampling import add_sampling_options, argument, loading_options, saving_options
from rdm.sampling.settings import Settings
from rdm.sampling.values import POOL, check_pool


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument(
        "--class",
        dest="classes",
        action="append",
        required=True,
        metavar="NAME",
        help="a class, such as animal-bird, or its number in a model that was trained on classes; may be given several "
        "times",
    )
    p.add_argument("--by", type=argument("by"), default="text", help="how the rows of a class are found: text or label")
    p.add_argument(
        "--pool",
        type=argument("pool"),
        default=POOL,
        help="with --by text: number of nearest rows that the neighbours are drawn from",
    )
    add_sampling_options(
        p, outdir="outputs/class2img", n_samples=8, counted="images of each class", without=("text_scale",)
    )
    return p.parse_args()


@command_line
def main() -> None:
    """Samples ``--n_samples`` images of every class."""
    args = parse()
    check_pool(args.pool, args.by, args.knn)
    settings, saving = Settings.of_command_line(vars(args)), saving_options(args)
    import rdm
    from rdm.sampling import ways
    from rdm.sampling.record import save
    from rdm.sampling.samples import sample_batches

    pipeline = rdm.load(**loading_options(args))
    names = [ways.class_of(pipeline, name) for name in args.classes]
    repeated = [name for name in names for _ in range(args.n_samples)] * args.n_iter
    request = ways.classes(pipeline, repeated, k=args.knn, pool=args.pool, by=args.by, seed=args.seed)
    samples = sample_batches(pipeline, request, settings)
    print(save(samples, pipeline, args.outdir, "class2img", **saving))


if __name__ == "__main__":
    main()
