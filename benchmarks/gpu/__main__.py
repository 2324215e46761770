"""Measures this project on a GPU: one command, one JSON file and one table.

    python -m benchmarks.gpu [--minutes 10] [--folder outputs/gpu] [--only PART ...]

============= =======================================================================================================
``machine``   packages, the GPU, and what is missing
``attention`` each kernel at the shapes of the U-Net of ImageNet: milliseconds, and difference from exact products
``sampling``  images a second of the 400.9 M model at batches of 1, 8 and 64, and the memory
``training``  pictures a second of its U-Net, and the share of the device's products (MFU)
``unet``      evaluation and training step by dtype, compiled, channels last, CUDA graphs, beside diffusers' U-Net
``decoder``   a picture as a whole and in tiles
``main.py``   a step of ``main.py`` with the small model of the emoji, with its loader
``search``    faiss on the CPU and on the GPUs among 10^6 vectors
``tests``     those that need a GPU
============= =======================================================================================================

Each part runs in a process of its own and is written as soon as it is done, so an interruption loses one part. A part
that has been measured is not measured again; ``--again`` does. When the time is over, the other parts are left out.
Without a GPU, all sizes are tiny: the times then say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import networks, system
from benchmarks.gpu.timing import GPU, Bench
from ldm.command_line import command_line
from ldm.files import read_json, write_json

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {"machine": system.machine, **networks.PARTS, **system.PARTS}


def measured(part: str, seconds: float, device: str) -> dict[str, Any]:
    """Runs a part in a process of its own and returns its figures, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", part, "--device", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=os.environ)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {"not": f"it was not done after {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"not": said[-1][:200]}
    return json.loads(lines[-1])


def table(found: Mapping[str, Any]) -> str:
    """Returns the figures as a table of Markdown."""
    lines = ["| part | what | figures |", "|---|---|---|"]
    for part, rows in found.items():
        for what, row in rows.items():
            lines.append(f"| {part} | {what} | {_words(row)} |")
    return "\n".join(lines)


def _words(row: Any) -> str:
    if isinstance(row, Mapping):
        return "; ".join(f"{name} {_words(value)}" for name, value in row.items())
    return "; ".join(map(str, row)) or "nothing" if isinstance(row, list) else "-" if row is None else str(row)


@command_line
def main() -> None:
    """Measures the parts of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=10.0, help="time for everything; default: 10")
    p.add_argument("--folder", type=Path, default=Path("outputs/gpu"), help="folder of gpu.json and gpu.md")
    p.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"parts: {', '.join(PARTS)}")
    p.add_argument("--again", action="store_true", help="measure parts again that are in the folder")
    p.add_argument("--device", default=GPU if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    p.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        print(json.dumps(PARTS[args.child](Bench(args.device, tiny=args.device == "cpu"))), flush=True)
        return
    end, file = time.monotonic() + 60 * args.minutes, args.folder / "gpu.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    found = read_json(file, "run with --again, or give another --folder") if file.is_file() and not args.again else {}
    for part in args.only or PARTS:
        if part in found and "not" not in found[part]:
            continue
        left = end - time.monotonic()
        if left < 1:
            print(f"{part}: no time is left", flush=True)
            continue
        found[part] = measured(part, left, args.device)
        write_json(file, found)
        (args.folder / "gpu.md").write_text(table(found) + "\n", encoding="utf-8")
        print(f"{part}: {found[part].get('not', 'done')}", flush=True)
    print(args.folder / "gpu.md")


if __name__ == "__main__":
    main()
