"""Edits of a picture: inpainting (--mask), outpainting (--outpaint), image-to-image (--strength), inversion (--invert).

The model sees the neighbours of --prompt. Without a prompt, it sees the neighbours of the picture or, with --mask or
--outpaint, those of the part that is kept. --invert finds the noise that leads to the picture and samples from it under
the prompt; without a prompt it gives the picture back and prints how well. The picture may have any size.
"""

from __future__ import annotations

import argparse
from itertools import chain

from ldm.command_line import ArgumentParser, HelpFormatter, command_line
from rdm.cli.sampling import add_sampling_options, argument, loading_options, saving_options
from rdm.sampling.settings import AUTOREGRESSION, OPTIONS, Settings
from rdm.sampling.values import NEGATIVE_WEIGHT, REPEATS, whole_or_text

WAYS = (
    "prompt", "class_name", "mask", "outpaint", "strength", "invert", "repeats", "size", "negative", "negative_weight",
)  # fmt: skip
# Edits have the size of the picture, and autoregressive models cannot edit.
UNUSED = ("height", "width", *(name for name, known in OPTIONS.items() if known.group == AUTOREGRESSION))


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("--image", required=True, metavar="FILE", help="the picture")
    p.add_argument("--prompt", type=argument("prompt"), metavar="TEXT", help="the text whose neighbours the model sees")
    of_class = "the class that a plain model sees that was trained on classes, by its name or number"
    p.add_argument("--class", dest="class_name", type=argument("class_name"), metavar="NAME", help=of_class)
    p.add_argument("--mask", metavar="FILE", help="a picture of the same size: white is repainted, black stays")
    p.add_argument(
        "--outpaint",
        type=whole_or_text,
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="extend the picture by this many pixels at each side",
    )
    p.add_argument(
        "--strength",
        type=argument("strength"),
        help="how much is repainted: 0 nothing, 1 all; required without --mask, --outpaint and --invert, else 1",
    )
    p.add_argument("--invert", action="store_true", help="start from the noise that leads to the picture")
    p.add_argument(
        "--repeats",
        type=argument("repeats"),
        default=REPEATS,
        help="with a mask: number of times that each step is sampled, so that new and old parts fit",
    )
    scaled = "scale the centre of picture and mask to this side or HEIGHTxWIDTH"
    p.add_argument("--size", type=argument("size"), metavar="PIXELS", help=scaled)
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--only_caption", action="store_true", help="the model sees the prompt alone, without neighbours")
    seen.add_argument("--use_query", action="store_true", help="the model sees the prompt and then its neighbours")
    p.add_argument("--negative", type=argument("negative"), metavar="TEXT", help="move the query away from this text")
    weight = argument("negative_weight")
    p.add_argument("--negative_weight", type=weight, default=NEGATIVE_WEIGHT, help="its weight; the prompt has 1")
    add_sampling_options(p, outdir="outputs/edit", n_samples=1, counted="edited pictures", without=UNUSED)
    return p.parse_args()


@command_line
def main() -> None:
    """Makes ``--n_samples`` images of the picture."""
    args = parse()
    tokens = "text" if args.only_caption else "both" if args.use_query else "neighbours"
    settings, saving = Settings.of_command_line(vars(args)), saving_options(args)
    settings.check_tokens(tokens)
    import rdm
    from rdm.sampling.edit import edit, fidelity
    from rdm.sampling.record import save
    from rdm.sampling.samples import sample_batches

    pipeline = rdm.load(**loading_options(args))
    ways, n = {name: getattr(args, name) for name in WAYS}, args.n_samples * args.n_iter
    request = edit(pipeline, args.image, n, k=args.knn, seed=args.seed, tokens=tokens, **ways)
    samples = sample_batches(pipeline, request, settings)
    if args.invert and args.prompt is None and args.class_name is None:
        first = next(samples)
        samples, (back, alone) = chain([first], samples), fidelity(first, pipeline)
        print(f"the picture comes back at {back:.1f} dB; the first stage alone gives {alone:.1f} dB")
    print(save(samples, pipeline, args.outdir, "edit", **saving))


if __name__ == "__main__":
    main()
