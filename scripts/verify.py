"""Checks the signatures of images: whether a key signed them, and whether pixels and records are unchanged since.

The sampling scripts sign with --sign. The exit code is 0 only if all images are good, and 1 if one is not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, command_line
from rdm.sampling.signing import new_key, read_key, verified


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("images", nargs="*", metavar="IMAGE", help="files that the sampling scripts wrote")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="KEYFILE", help="the key that the images should be signed by")
    what.add_argument("--new-key", metavar="KEYFILE", help="make a random key in a new file, which only you can read")
    return p.parse_args()


@command_line
def main() -> None:
    """Prints a line for each image, or makes a key."""
    args = parse()
    if args.new_key is not None:
        if args.images:
            raise ValueError(f"got --new-key with {args.images[0]}, expected no image; check images with --key")
        print(f"{args.new_key} has the new key {new_key(args.new_key).name}; keep it secret")
        return
    if not args.images:
        raise ValueError("got no image, expected the files to check")
    key, are_good = read_key(args.key), True
    for image in args.images:
        if not Path(image).is_file():
            print(f"{image}: no such file")
            are_good = False
            continue
        result = verified(Path(image).read_bytes(), key)
        print(f"{image}: {result.words()}")
        are_good &= result.is_good
    if not are_good:
        sys.exit(1)


if __name__ == "__main__":
    main()
