"""Text-to-image: the database rows nearest to a text condition the model, which was trained without texts."""

from __future__ import annotations

import argparse

from ldm.command_line import ArgumentParser, HelpFormatter, command_line
from ldm.files import read_text
from rdm.cli.sampling import add_sampling_options, argument, loading_options, saving_options
from rdm.sampling.settings import Settings
from rdm.sampling.values import IMAGE_WEIGHT, NEGATIVE_WEIGHT

QUERY = ("image", "image_weight", "negative", "negative_weight")


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument(
        "--prompt", "--caption", type=argument("prompt"), action="append", help="a text; may be given several times"
    )
    p.add_argument("--from-file", metavar="FILE", help="a file with one prompt in each line")
    p.add_argument(
        "--to", metavar="TEXT", help="make a strip of --n_samples images that leads from --prompt to this text"
    )
    seen = p.add_mutually_exclusive_group()
    seen.add_argument("--only_caption", action="store_true", help="the model sees the text alone, without neighbours")
    seen.add_argument(
        "--use_query", "--use_neighbors", action="store_true", help="the model sees the text and then its neighbours"
    )
    seen.add_argument(
        "--omit_query", action="store_true", help="the model sees the neighbours alone; this is the default"
    )
    apart = "look up --knn neighbours of each of these texts apart; without texts, of the parts of --prompt"
    p.add_argument("--concept", nargs="*", type=argument("prompt"), metavar="TEXT", help=apart)
    p.add_argument("--image", metavar="FILE", help="mix this picture into the query")
    beside = "weight of --image in the query; the text has weight 1"
    p.add_argument("--image_weight", type=argument("image_weight"), default=IMAGE_WEIGHT, help=beside)
    p.add_argument("--negative", type=argument("negative"), metavar="TEXT", help="move the query away from this text")
    weight = argument("negative_weight")
    p.add_argument("--negative_weight", type=weight, default=NEGATIVE_WEIGHT, help="its weight; the prompt has 1")
    counted = "images of each prompt; with --to, of images from one text to the other"
    add_sampling_options(p, outdir="outputs/txt2img", n_samples=4, counted=counted)
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
    if args.to is not None and (len(prompts) > 1 or args.n_iter > 1 or args.image or args.negative):
        raise ValueError("got --to with several prompts or rounds, --image or --negative, expected one --prompt alone")
    if args.to is not None and (args.only_caption or args.use_query):
        raise ValueError("got --to with --only_caption or --use_query, expected it without: no text is half-way")
    if args.concept is not None and (args.to or args.image or args.negative or args.only_caption or args.use_query):
        raise ValueError("got --concept with another option of what the query or the model sees, expected it alone")
    tokens = "text" if args.only_caption else "both" if args.use_query else "neighbours"
    settings, saving = Settings.of_command_line(vars(args)), saving_options(args)
    settings.check_tokens(tokens)
    import rdm
    from rdm.sampling import ways
    from rdm.sampling.concepts import concepts
    from rdm.sampling.record import save
    from rdm.sampling.samples import sample_batches

    pipeline = rdm.load(**loading_options(args))
    every = [prompt for prompt in prompts for _ in range(args.n_samples)] * args.n_iter
    if args.concept is not None:
        request = concepts(pipeline, every, args.concept, k=args.knn, seed=args.seed)
    elif args.to is not None:
        request = ways.between(pipeline, prompts[0], args.to, args.n_samples, k=args.knn, seed=args.seed)
        saving["per_row"] = args.n_rows or args.n_samples
    else:
        query = {name: getattr(args, name) for name in QUERY}
        request = ways.texts(pipeline, every, k=args.knn, seed=args.seed, tokens=tokens, **query)
    print(save(sample_batches(pipeline, request, settings), pipeline, args.outdir, "txt2img", **saving))


if __name__ == "__main__":
    main()
