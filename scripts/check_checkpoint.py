"""Checks a downloaded checkpoint: whether it is complete, which model it holds, what is missing. Runs no code in it."""

from __future__ import annotations

import argparse

from ldm.command_line import ArgumentParser, HelpFormatter, add_trust_option, command_line


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("checkpoint", help="file of weights (.ckpt or .safetensors), or a folder that has one")
    p.add_argument("--config", help="config that the weights should fit; the one beside them if not given")
    p.add_argument(
        "--all_bytes",
        action="store_true",
        help="also read the whole file: compare it with the checksums inside a .ckpt, and print its SHA-256",
    )
    add_trust_option(p)
    return p.parse_args()


@command_line
def main() -> None:
    """The command ``python scripts/check_checkpoint.py``."""
    args = parse()
    from pathlib import Path

    from ldm.downloads import check_bytes
    from rdm.convert.released import report
    from rdm.loading import beside, find_checkpoint

    path = find_checkpoint(args.checkpoint)
    config = Path(args.config) if args.config else beside(path) / "config.yaml"
    print(path)
    for line in report(path, config if args.config or config.is_file() else None):
        print(f"  {line}")
    if args.all_bytes:
        print(f"  bytes: all checksums agree; SHA-256 {check_bytes(path)}")


if __name__ == "__main__":
    main()
