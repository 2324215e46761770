"""Builds or changes a retrieval database and its index. The same command continues a build that was stopped.

The default command is build: build_database.py --config configs/database/emoji.yaml
"""

from __future__ import annotations

import argparse
import sys

from ldm.command_line import ArgumentParser, HelpFormatter, command_line
from rdm.cli.building import (
    add_import_options,
    add_index_options,
    add_picture_options,
    add_removal_options,
    add_source_options,
)

COMMANDS = {
    "build": "embed the pictures of a source (the default command)",
    "append": "embed those pictures of a source that the database does not have yet",
    "add": "embed single pictures, keep them in the folder of the database, with their licence",
    "remove": "mark rows as removed; searches, neighbour tables and popularity then leave them out",
    "compact": "delete removed rows from the files",
    "merge": "write one database with the rows of several",
    "import": "import CompVis' .npz files, a folder of clip-retrieval, or CompVis' nn_memory (.p) as popularity",
    "show": "say what the database is: rows, licences, sources, index, disk",
    "verify": "check every byte of the database, its index and its neighbour tables",
}


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        p = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=HelpFormatter
        )
        if name in ("build", "append"):
            add_source_options(p)
        elif name == "merge":
            p.add_argument("databases", nargs="+", help="folders of databases that were made with one CLIP")
            p.add_argument("--output", required=True, help="folder of the new database")
        elif name == "import":
            add_import_options(p)
        else:
            p.add_argument("database", help="folder of the database")
        if name == "remove":
            add_removal_options(p)
        elif name == "add":
            add_picture_options(p)
        elif name not in ("compact", "show", "verify"):
            add_index_options(p)
    words = sys.argv[1:]
    return parser.parse_args(words if words and words[0] in (*COMMANDS, "-h", "--help") else ["build", *words])


@command_line
def main() -> None:
    """Runs the command."""
    args = parse_args()
    from rdm.cli import database  # loads torch and faiss; --help must not wait for that

    for line in database.COMMANDS[args.command](args):
        print(line)


if __name__ == "__main__":
    main()
