"""Plots training and validation losses: `python -m benchmarks.curves RUN [RUN ...] --output losses.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.curves import draw_losses


def main() -> None:
    """Plots the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, or LABEL=FOLDER for another label in the plot"
    )
    parser.add_argument("--output", default="losses.png", type=Path, help="PNG file to write")
    args = parser.parse_args()
    named = [text.rpartition("=") for text in args.runs]
    draw_losses({label or Path(run).name: Path(run) for label, _, run in named}, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
