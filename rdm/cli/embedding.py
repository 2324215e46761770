"""The command-line options of the scripts that embed pictures."""

from __future__ import annotations

import argparse

from ldm.command_line import add_trust_option
from rdm.cli.sampling import argument


def add_ray_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--ray``."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="embed on the machines of a Ray cluster: 'local' starts one here, 'auto' uses the one that runs here, "
        "HOST:PORT is the head of one that this machine is part of; all machines must see the pictures and the "
        "database in the same folders, and each machine embeds whole shards (shard_rows of the config)",
    )


def add_embedding_options(parser: argparse.ArgumentParser, beside: str) -> None:
    """Adds the options that the embedding scripts share. They apply to the option ``beside`` or to a config."""
    p = parser
    p.add_argument(
        "--size",
        type=argument("size"),
        default=256,
        metavar="PIXELS",
        help=f"with {beside}: side in pixels to which pictures are scaled, or HEIGHTxWIDTH",
    )
    p.add_argument(
        "--embedder",
        default="models/clip/emoji",
        help=f"with {beside}: CLIP: its folder, or the name of an open_clip model; or efficientnet_lite0",
    )
    p.add_argument(
        "--pretrained", help=f"with {beside}: open_clip's name of the weights, if --embedder is the name of a model"
    )
    add_trust_option(p)
    p.add_argument(
        "overrides", nargs="*", metavar="key=value", help="with --config: settings that replace those of the config"
    )
