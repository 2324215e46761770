"""Trains the default model for some minutes, samples from it in every way, and shows all images in one picture."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, finite

ROOT = Path(__file__).parents[1]
PROMPTS = ("a red guitar", "cat", "pizza", "butterfly", "an openmoji line drawing of a car", "house")
CLASSES = ("animal-bird", "food-fruit", "sky-weather")


def train(minutes: float, run: Path) -> None:
    """Trains ``configs/rdm.yaml`` from random weights for the given number of minutes."""
    words = [
        f"lightning.trainer.max_time.seconds={round(60 * minutes)}",
        "lightning.trainer.val_check_interval=100",
    ]
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--base",
        "configs/rdm.yaml",
        "-t",
        "-p",
        str(run),
        *words,
    ]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:  # noqa: S603 (our own command)
        raise ValueError("training failed; see its message above")


@command_line
def main() -> None:
    """Runs the demo; ``make demo`` calls this command."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument(
        "--minutes", type=finite, default=5.0, help="training time in minutes; 0 shows the shipped model only"
    )
    p.add_argument("--outdir", default="outputs/demo", help="output folder for the pictures")
    args = p.parse_args()
    from rdm.loading import SHIPPED
    from rdm.sampling.demo import paint

    started = time.time()
    run = Path("logs") / time.strftime("%Y-%m-%dT%H-%M-%S_demo")
    checkpoints = [str(SHIPPED)] if SHIPPED.is_dir() else []
    if args.minutes > 0:
        train(args.minutes, run)
        checkpoints.append(str(run))
    if not checkpoints:
        raise ValueError(f"nothing to show: no model in {SHIPPED}, and --minutes {args.minutes:g} trains none")
    picture = paint(checkpoints, PROMPTS, CLASSES, Path(args.outdir))
    print(f"\ndone in {(time.time() - started) / 60:.1f} minutes; everything is in one picture:\n{picture.resolve()}")


if __name__ == "__main__":
    main()
