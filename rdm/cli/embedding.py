"""The command-line options of the scripts that embed pictures."""

from __future__ import annotations

import argparse

from ldm.command_line import add_trust_option, positive


def add_ray_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--ray``."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="embed on the machines of a Ray cluster: 'local' starts one here, 'auto' takes the one that runs here, "
        "HOST:PORT is the head of one that this machine is part of; all of them have to see the pictures and the "
        "database in the same folders, and each embeds whole shards (shard_rows of the config)",
    )


def add_embedding_options(parser: argparse.ArgumentParser, beside: str) -> None:
    """Adds what the scripts that embed pictures share, for use with the option ``beside`` or with a config."""
    p = parser
    p.add_argument("--size", type=positive, default=256, help=f"with {beside}: side of the pictures in pixels")
    p.add_argument("--embedder", default="models/clip/emoji", help=f"with {beside}: open_clip folder or architecture")
    p.add_argument("--pretrained", help=f"with {beside}: open_clip's name of the weights")
    add_trust_option(p)
    p.add_argument("overrides", nargs="*", help="with --config: entries of it as key.path=value")
