"""Images made of a picture, with the neighbours of --prompt, or else of what stays of the picture.

One of: --mask paints anew what is white in it, --outpaint what lies around the picture, --strength all of it by so
much, --invert finds the noise that the picture is made from and samples that under the prompt (without one, it gives
the picture back and says how well). Sides have to be multiples of what the model divides them by, 16 as shipped.
"""

from __future__ import annotations

import argparse

from ldm.command_line import command_line
from rdm.cli.sampling import add_sampling_options, finite, fraction, positive, sampling_options, saving_options

WAYS = ("prompt", "mask", "outpaint", "strength", "invert", "repeats", "size", "negative", "negative_weight")


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--image", required=True, metavar="FILE", help="the picture")
    p.add_argument("--prompt", metavar="TEXT", help="what is painted")
    p.add_argument("--mask", metavar="FILE", help="a picture of the same size: white is painted anew, black stays")
    p.add_argument(
        "--outpaint", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="extend by so many pixels"
    )
    p.add_argument("--strength", type=fraction, help="how much is painted anew: 0 nothing, 1 (else) all")
    p.add_argument("--invert", action="store_true", help="start at the noise that leads to the picture")
    p.add_argument(
        "--repeats", type=positive, default=4, help="with a mask: sample each step so often, to fit what stays"
    )
    p.add_argument("--size", type=positive, help="scale the centre square of picture and mask to this side")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--only_caption", action="store_true", help="condition on the prompt alone, without neighbours")
    what.add_argument("--use_query", action="store_true", help="condition on the prompt and then the neighbours")
    p.add_argument("--negative", metavar="TEXT", help="look for neighbours away from this text")
    p.add_argument("--negative_weight", type=finite, default=0.5, help="how far, where the prompt has 1")
    add_sampling_options(p, outdir="outputs/edit", n_samples=1)
    return p.parse_args()


@command_line
def main() -> None:
    """Makes ``--n_samples`` images of the picture."""
    args = parse()
    from rdm.loading import load
    from rdm.sampling.edit import edit_picture, fidelity
    from rdm.sampling.record import save

    loaded = load(args.ckpt, args.database, args.only, args.config)
    tokens = "text" if args.only_caption else "both" if args.use_query else "neighbours"
    options = sampling_options(args) | {"tokens": tokens} | {name: getattr(args, name) for name in WAYS}
    samples = edit_picture(loaded, args.image, args.n_samples * args.n_iter, k=args.knn, seed=args.seed, **options)
    if args.invert and args.prompt is None:
        print(
            "the picture comes back at {:.1f} dB; the first stage alone: {:.1f} dB".format(*fidelity(samples, loaded))
        )
    print(save(samples, loaded, args.outdir, "edit", **saving_options(args)))


if __name__ == "__main__":
    main()
