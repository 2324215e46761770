"""Images from texts: each prompt's nearest neighbours in the database condition the model."""

from __future__ import annotations

import argparse

from ldm.command_line import command_line
from ldm.files import read_text
from rdm.cli.sampling import add_sampling_options, finite, names, sampling_options, saving_options


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(*names("--prompt"), action="append", help="a text; may be given several times")
    p.add_argument("--from-file", metavar="FILE", help="a file with a prompt in each line")
    p.add_argument("--to", metavar="TEXT", help="a strip of --n_samples images on the way from --prompt to this text")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--only_caption", action="store_true", help="condition on the text alone, without neighbours")
    what.add_argument(*names("--use_query"), action="store_true", help="condition on the text and then the neighbours")
    what.add_argument("--omit_query", action="store_true", help="condition on the neighbours alone, the default")
    p.add_argument("--image", metavar="FILE", help="look for neighbours between the text and this picture")
    p.add_argument("--image_weight", type=finite, default=0.5, help="of the picture, where the text has 1")
    p.add_argument("--negative", metavar="TEXT", help="look for neighbours away from this text")
    p.add_argument("--negative_weight", type=finite, default=0.5, help="how far, where the prompt has 1")
    p.add_argument(
        "--text_scale", type=finite, help="with --use_query: the text's own scale; --scale is its neighbours'"
    )
    add_sampling_options(p, outdir="outputs/txt2img", n_samples=4)
    return p.parse_args()


@command_line
def main() -> None:
    """Samples ``--n_samples`` images of every prompt."""
    args = parse()
    prompts = list(args.prompt or [])
    if args.from_file:
        prompts += [line.strip() for line in read_text(args.from_file).splitlines() if line.strip()]
    if not prompts:
        raise ValueError("no prompt; give --prompt TEXT, or --from-file FILE with one in each line")
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("got an empty --prompt, expected some words")
    if args.text_scale is not None and not args.use_query:
        raise ValueError("got --text_scale, expected --use_query with it")
    if args.to is not None and (len(prompts) > 1 or args.n_iter > 1 or args.image or args.negative):
        raise ValueError("got --to with several prompts or rounds, --image or --negative, expected one --prompt alone")
    from rdm.loading import load
    from rdm.sampling.record import save
    from rdm.sampling.samples import sample_between, sample_texts

    loaded = load(args.ckpt, args.database, args.only, args.config)
    tokens = "text" if args.only_caption else "both" if args.use_query else "neighbours"
    options = sampling_options(args) | {"tokens": tokens, "k": args.knn, "seed": args.seed}
    if args.to is not None:
        samples = sample_between(loaded, prompts[0], args.to, args.n_samples, **options)
        saved = {"per_row": args.n_samples} | {key: value for key, value in saving_options(args).items() if value}
        print(save(samples, loaded, args.outdir, "txt2img", **saved))
        return
    repeated = [prompt for prompt in prompts for _ in range(args.n_samples)] * args.n_iter
    mixed = ("text_scale", "image", "image_weight", "negative", "negative_weight")
    samples = sample_texts(loaded, repeated, **options, **{name: getattr(args, name) for name in mixed})
    print(save(samples, loaded, args.outdir, "txt2img", **saving_options(args)))


if __name__ == "__main__":
    main()
