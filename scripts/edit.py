"""Edits of a picture: inpainting (--mask), outpainting (--outpaint), image-to-image (--strength), inversion (--invert).

The model sees the neighbours of --prompt. Without a prompt, it sees the neighbours of the picture or, with --mask or
--outpaint, those of the part that is kept. --invert finds the noise that leads to the picture and samples from it under
the prompt; without a prompt it gives the picture back and prints how well. The picture may have any size.
"""

from __future__ import annotations

import argparse

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, finite, fraction, picture_size, positive
from rdm.cli.sampling import add_sampling_options, saving_options
from rdm.sampling.settings import AUTOREGRESSION, NEGATIVE_WEIGHT, OPTIONS, REPEATS, Settings

WAYS = ("prompt", "mask", "outpaint", "strength", "invert", "repeats", "size", "negative", "negative_weight")
# Edits have the size of the picture, and autoregressive models cannot edit.
UNUSED = ("height", "width", *(name for name, known in OPTIONS.items() if known.kind == AUTOREGRESSION))


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("--image", required=True, metavar="FILE", help="the picture")
    p.add_argument("--prompt", metavar="TEXT", help="a text: the model sees its neighbours while it paints")
    p.add_argument("--mask", metavar="FILE", help="a picture of the same size: white is repainted, black stays")
    p.add_argument(
        "--outpaint",
        type=int,
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="extend the picture by this many pixels at each side",
    )
    p.add_argument(
        "--strength",
        type=fraction,
        help="how much is repainted: 0 nothing, 1 all; required without --mask, --outpaint and --invert, else 1",
    )
    p.add_argument("--invert", action="store_true", help="start from the noise that leads to the picture")
    p.add_argument(
        "--repeats",
        type=positive,
        default=REPEATS,
        help="with a mask: number of times that each step is sampled, so that new and old parts fit",
    )
    p.add_argument(
        "--size",
        type=picture_size,
        metavar="PIXELS",
        help="scale the centre of picture and mask to this side or HEIGHTxWIDTH",
    )
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--only_caption", action="store_true", help="the model sees the prompt alone, without neighbours")
    seen.add_argument("--use_query", action="store_true", help="the model sees the prompt and then its neighbours")
    p.add_argument("--negative", metavar="TEXT", help="move the query away from this text")
    p.add_argument(
        "--negative_weight", type=finite, default=NEGATIVE_WEIGHT, help="weight of --negative; the prompt has weight 1"
    )
    add_sampling_options(p, outdir="outputs/edit", n_samples=1, counted="edited pictures", without=UNUSED)
    return p.parse_args()


@command_line
def main() -> None:
    """Makes ``--n_samples`` images of the picture."""
    args = parse()
    settings = Settings.of_command_line(vars(args))
    import rdm
    from rdm.sampling.edit import edit, fidelity
    from rdm.sampling.record import save
    from rdm.sampling.samples import sample

    pipeline = rdm.load(args.ckpt, args.database, args.only, args.config, args.same_outline)
    tokens = "text" if args.only_caption else "both" if args.use_query else "neighbours"
    ways, n = {name: getattr(args, name) for name in WAYS}, args.n_samples * args.n_iter
    request = edit(pipeline, args.image, n, k=args.knn, seed=args.seed, tokens=tokens, **ways)
    samples = sample(pipeline, request, settings)
    if args.invert and args.prompt is None:
        back, alone = fidelity(samples, pipeline)
        print(f"the picture comes back at {back:.1f} dB; the first stage alone gives {alone:.1f} dB")
    print(save(samples, pipeline, args.outdir, "edit", **saving_options(args)))


if __name__ == "__main__":
    main()
