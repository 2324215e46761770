"""Shows samples of the shipped model, then adapts it to other pictures for some minutes and shows what has changed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, finite

ROOT = Path(__file__).parents[1]
PROMPTS = ("a red guitar", "cat", "pizza", "butterfly", "a car", "house")
CLASSES = ("animal-bird", "food-fruit", "sky-weather")
DRAWINGS = ROOT / "data" / "emoji" / "noto.parquet"


def adapt(pictures: str, run: Path, outdir: Path, minutes: float) -> Path:
    """Adapts the shipped model to pictures, and returns the path of their database."""
    from ldm.config import write_config
    from rdm.loading import SHIPPED
    from rdm.sampling.adapt import adapting_config

    database = outdir / "database"
    write_config(outdir / "config.yaml", adapting_config(str(SHIPPED), pictures, database, minutes))
    words = ["--base", str(outdir / "config.yaml"), "-t", "-p", str(run), "--no-test"]
    if subprocess.run([sys.executable, str(ROOT / "main.py"), *words], check=False).returncode != 0:  # noqa: S603
        raise ValueError("training failed; see its message above")
    return database


@command_line
def main() -> None:
    """Runs the demo; ``make demo`` calls this command."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument(
        "--minutes", type=finite, default=5.0, help="training time in minutes; 0 shows the shipped model only"
    )
    p.add_argument(
        "--pictures",
        help="pictures to adapt to: a folder, Parquet files or tar shards; if not given, emoji as pixel art",
    )
    p.add_argument("--outdir", default="outputs/demo", help="output folder for the pictures")
    args = p.parse_args()
    from rdm.loading import SHIPPED
    from rdm.sampling.adapt import pixel_art
    from rdm.sampling.demo import Column, paint

    started, outdir = time.time(), Path(args.outdir)
    columns = [Column("the shipped model", str(SHIPPED))]
    if args.minutes > 0:
        outdir = outdir / time.strftime("%Y-%m-%dT%H-%M-%S")
        run = outdir / "run"  # not in logs/, so that the other scripts load the shipped model
        pictures = args.pictures or str(pixel_art(DRAWINGS, outdir / "pictures" / "pixel-art.parquet", 800))
        database = str(adapt(pictures, run, outdir, args.minutes))
        columns += [
            Column("the shipped model with other pictures", str(SHIPPED), database),
            Column(f"after {args.minutes:g} min of training", str(run), database),
        ]
    picture = paint(columns, PROMPTS, () if args.pictures else CLASSES, outdir)
    print(f"\ndone in {(time.time() - started) / 60:.1f} minutes; everything is in one picture:\n{picture.resolve()}")


if __name__ == "__main__":
    main()
