"""Runs ``scripts/evaluate.py images`` on a known pair of folders and compares its figures with other programs.

    python -m benchmarks.agreement --n 512

The pair is n pictures each of two styles of the emoji data, as PNG files. torch-fidelity reads the same files and uses
the same networks, which are loaded without any code of this project. These are the shipped CLIP through open_clip, a
torchvision network with random weights, and Inception. The weights of Inception come from ``--inception FILE``, which
is torch-fidelity's weights-inception-2015-12-05-6726825d.pth, or are random (``--inception random``). torchmetrics and
the published definitions compute their figures from the features that torch-fidelity's networks give.

The table is printed and written to the folder. A relative difference of more than 1e-3 is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.agreement.networks import (
    CALIBRATION,
    Network,
    classifier,
    emoji_clip,
    inception,
    random_inception,
)
from benchmarks.agreement.pair import ROOT, Pair, pixels, script, write_pair
from benchmarks.agreement.table import compared, table
from benchmarks.agreement.theirs import figures
from ldm.command_line import command_line
from ldm.files import write_text
from rdm.evaluate.metrics import SPLITS

NETWORKS = ("clip", "unit", "classifier", "inception")


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=512, help="number of pictures in each folder")
    p.add_argument(
        "--made", type=Path, default=ROOT / "data/emoji/fluent.parquet", help="Parquet file of the pictures to evaluate"
    )
    p.add_argument(
        "--reference", type=Path, default=ROOT / "data/emoji/noto.parquet", help="Parquet file of the reference"
    )
    p.add_argument(
        "--networks",
        nargs="+",
        default=NETWORKS,
        choices=NETWORKS,
        metavar="NAME",
        help=f"feature networks: {', '.join(NETWORKS)}",
    )
    p.add_argument(
        "--inception", metavar="FILE", help="weights of Inception, or 'random'; Inception is left out if not given"
    )
    p.add_argument("--folder", type=Path, default=ROOT / "outputs/agreement", help="output folder")
    args = p.parse_args()
    if args.n < SPLITS:
        p.error(f"--n: got {args.n}, expected at least {SPLITS}, the parts of an inception score")
    if set(args.networks) == {"inception"} and not args.inception:
        p.error("--networks inception alone needs --inception FILE, or --inception random")
    return args


def networks(args: argparse.Namespace, pair: Pair) -> Iterator[Network]:
    """Yields the networks of the command line."""
    shown = pixels(pair.real, CALIBRATION)
    if "clip" in args.networks:
        yield emoji_clip(unit=False)
    if "unit" in args.networks:
        yield emoji_clip(unit=True)
    if "classifier" in args.networks:
        yield classifier(shown, args.folder / "classifier.safetensors")
    if "inception" in args.networks and args.inception == "random":
        yield random_inception(shown, args.folder / "inception.pth")
    elif "inception" in args.networks and args.inception:
        yield inception(Path(args.inception).absolute(), "Inception")


@command_line
def main() -> None:
    """Runs the comparison; the exit status is 1 if a figure differs too much."""
    args = parse()
    args.folder = args.folder.absolute()
    pair = write_pair(args.folder, args.made, args.reference, args.n)
    compared_networks = list(networks(args, pair))
    report = script(pair, [network.name for network in compared_networks], args.folder / "ours")
    rows = []
    with torch.inference_mode():
        for network in compared_networks:
            rows += compared(network.words, report["figures"][network.name], figures(pair, network))
    versions = ", ".join(f"{name} {version}" for name, version in report["protocol"]["versions"].items())
    lines = [f"{args.n} pictures each, {args.made.stem} against {args.reference.stem}; {versions}", table(rows)]
    if "inception" in args.networks and not args.inception:
        lines.append("Inception was not run; give its weights with --inception FILE")
    off = sum(not row.within for row in rows)
    lines.append(f"{off} of {len(rows)} figures are beyond 1e-3" if off else f"all {len(rows)} figures are within 1e-3")
    text = "\n\n".join(lines)
    write_text(args.folder / "agreement.md", text + "\n")
    print(text)
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
