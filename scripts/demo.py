"""Shows samples of the shipped model, then adapts it to another style for some minutes and shows what has changed."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, finite

ROOT = Path(__file__).parents[1]
PROMPTS = ("a red guitar", "cat", "pizza", "butterfly", "a car", "house", "an apple")
CLASSES = ("animal-bird", "food-fruit")
NEIGHBOURS = 2  # with more, the images of the shipped model mix several shapes
DRAWINGS = ROOT / "data" / "emoji" / "noto.parquet"


@command_line
def main() -> None:
    """Runs the demo; ``make demo`` calls this command. scripts/own.py does the same for pictures of one's own."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument(
        "--minutes", type=finite, default=5.0, help="training time in minutes; 0 shows the shipped model only"
    )
    p.add_argument("--outdir", default="outputs/demo", help="output folder for the pictures")
    args = p.parse_args()
    from rdm.loading import SHIPPED
    from rdm.sampling.adapt import adaptation
    from rdm.sampling.before_after import Query, asking, sampled, save_page
    from rdm.sampling.pipeline import Pipeline
    from rdm.sampling.pixel_art import pixel_art
    from rdm.sampling.ways import classes, popular, texts

    started, outdir = time.time(), Path(args.outdir)
    queries = [Query(f'"{prompt}"', asking(texts, prompt, NEIGHBOURS)) for prompt in PROMPTS]
    queries += [Query(f"class: {name}", asking(classes, name, NEIGHBOURS)) for name in CLASSES]
    queries.append(Query("unconditional", partial(popular, k=NEIGHBOURS)))
    labels = [query.label for query in queries]
    panels = sampled(Pipeline.load(str(SHIPPED)), queries, "the shipped model", 1)
    if args.minutes > 0:
        outdir = outdir / time.strftime("%Y-%m-%dT%H-%M-%S")  # not in logs/: other scripts load the shipped model
        adapted = adaptation(str(pixel_art(DRAWINGS, outdir / "pictures" / "pixel-art.parquet")), outdir)
        if before := adapted.before():
            panels += sampled(before, queries, "with other pictures", 1)
        adapted.train(args.minutes, ROOT / "main.py")
        panels += sampled(adapted.after(), queries, f"after {args.minutes:g} min", 1, neighbours=False)
    file = save_page(labels, panels, outdir / "demo.png")
    print(f"\ndone in {(time.time() - started) / 60:.1f} minutes; everything is in one picture:\n{file.resolve()}")


if __name__ == "__main__":
    main()
