"""The command-line options of the scripts that embed pictures."""

from __future__ import annotations

import argparse

from ldm.command_line import add_trust_option, positive


def add_ray_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--ray``."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="embed on the machines of a Ray cluster: 'local' starts a cluster on this machine, 'auto' joins the "
        "cluster that runs on this machine, HOST:PORT is the head node of a cluster that this machine belongs to; all "
        "machines need the pictures and the database in the same folders, and each one embeds whole shards "
        "(shard_rows of the config)",
    )


def add_embedding_options(parser: argparse.ArgumentParser, beside: str) -> None:
    """Adds the options that the embedding scripts share. They apply to the option ``beside`` or to a config."""
    p = parser
    p.add_argument("--size", type=positive, default=256, help=f"with {beside}: side of the pictures in pixels")
    p.add_argument("--embedder", default="models/clip/emoji", help=f"with {beside}: open_clip folder or architecture")
    p.add_argument("--pretrained", help=f"with {beside}: name of the weights in open_clip")
    add_trust_option(p)
    p.add_argument("overrides", nargs="*", help="with --config: changes of its entries, as key.path=value")
