"""Turns a training run into a folder to ship: config.yaml and model.safetensors, the averaged weights in float16."""

from __future__ import annotations

import argparse

from ldm.util import command_line


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("run", help="run folder with config.yaml and checkpoints/last.ckpt")
    p.add_argument("--checkpoint", help="another checkpoint of the run")
    p.add_argument("--output", required=True, help="folder to write, e.g. models/rdm/mine")
    p.add_argument("--float32", action="store_true", help="keep full precision")
    return p.parse_args()


@command_line
def main() -> None:
    """Writes the folder."""
    args = parse()
    from ldm.checkpoint import export_run

    file = export_run(args.run, args.output, checkpoint=args.checkpoint, half=not args.float32)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
