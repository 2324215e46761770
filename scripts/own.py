"""Adapts the shipped model to a folder of your own pictures, and shows in one picture what has changed.

The same command goes on with a run that was stopped. docs/own.md describes it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, add_trust_option, command_line, finite, folder

ROOT = Path(__file__).parents[1]


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("pictures", help="a folder of pictures, also in folders below it; or Parquet files, or tar shards")
    p.add_argument("--minutes", type=finite, default=10.0, help="time of training; more of it goes on with the run")
    p.add_argument(
        "--captions",
        nargs="*",
        metavar="SOURCE",
        help="where captions come from, in order of preference: txt, csv, name, folder; without any, there are none "
        "(default: all four, in this order)",
    )
    p.add_argument("--csv", metavar="FILE", help="the table of captions, if it is not the only .csv file in the folder")
    p.add_argument(
        "--embedder", help="another CLIP than the shipped one: its folder, or the name of an open_clip model"
    )
    p.add_argument("--pretrained", help="open_clip's name of the weights, if --embedder is the name of a model")
    p.add_argument(
        "--first_stage", metavar="FILE", help="the weights of a first stage that was trained on the pictures"
    )
    p.add_argument("--config", default="configs/own.yaml", help="the config that is filled in")
    p.add_argument(
        "--outdir", type=folder, help="folder for everything that is written (default: outputs/own/NAME OF THE FOLDER)"
    )
    p.add_argument("--forecast", action="store_true", help="only say how long it will take")
    add_trust_option(p)
    p.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings in place of the config's")
    return p.parse_intermixed_args()  # settings may follow options


@command_line
def main() -> None:
    """Looks at the pictures, says how long it will take, trains, and writes the picture."""
    started, args = time.time(), parse_args()
    from rdm.sampling.adapt import adaptation
    from rdm.sampling.before_after import SAMPLES, Panel, own_queries, sampled, save_page
    from rdm.sampling.calibrate import calibrate

    outdir = Path(args.outdir or Path("outputs/own") / Path(args.pictures).resolve().stem)
    adapted = adaptation(
        args.pictures,
        outdir,
        base=args.config,
        captions=args.captions,
        caption_table=args.csv,
        embedder=args.embedder,
        pretrained=args.pretrained,
        first_stage=args.first_stage,
        overrides=args.overrides,
    )
    print(adapted.pictures)
    queries, own = own_queries(adapted)
    forecast, starting = calibrate(adapted), time.time() - started
    images = 2 * SAMPLES * len(queries)
    print(forecast.describe(args.minutes, images, starting))
    if advice := forecast.advice():
        print(f"note: {advice}")
    if args.forecast:
        return
    labels, file, panels = [query.label for query in queries], outdir / "own.png", [Panel("your picture", own)]
    before = adapted.before()
    if before is not None:
        panels += sampled(before, queries, "before the training")
        print(f"a first look at the shipped model with your pictures: {save_page(labels, panels, file)}")
    adapted.train(args.minutes, ROOT / "main.py")
    panels += sampled(adapted.after(), queries, "after the training", neighbours=before is None)
    save_page(labels, panels, file)
    took, expected = (time.time() - started) / 60, forecast.minutes(args.minutes, images, starting)
    print(f"\ndone in {took:.1f} minutes (expected: {expected:.1f}); everything is in one picture:\n{file.resolve()}")


if __name__ == "__main__":
    main()
