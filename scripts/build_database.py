"""Builds a retrieval database and its index, and changes it later; what was stopped continues with the same command.

Without a command it builds: build_database.py --config configs/database/emoji.yaml
"""

from __future__ import annotations

import argparse
import sys

from ldm.command_line import add_trust_option, command_line
from rdm.cli.sampling import add_embedding_options, add_ray_option, finite, positive

COMMANDS = {
    "build": "embed the pictures of a source (what happens without a command)",
    "append": "embed those pictures of a source that the database does not have yet",
    "remove": "take rows out: no search, neighbour table or popularity gives them any more, from then on",
    "compact": "rewrite the database without the removed rows",
    "merge": "write one database with the rows of several",
    "import": "make a database of CompVis' .npz parts or clip-retrieval's folder, or read an nn_memory (.p) into one",
    "verify": "check every byte of the database, its index and its neighbour tables",
}


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        p = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in ("build", "append"):
            _add_sources(p)
        elif name == "merge":
            p.add_argument("databases", nargs="+", help="folders of databases that one embedder made")
            p.add_argument("--output", required=True, help="folder of the new one")
        elif name == "import":
            p.add_argument("paths", nargs="+", help=".npz parts, folders of them, a folder with img_emb, or a .p file")
            p.add_argument("--output", required=True, help="folder of the new database; of a .p file's, which is there")
            p.add_argument("--config", help="YAML file with the 'embedder' that made the vectors; see configs/database")
            add_trust_option(p)
        else:
            p.add_argument("database", help="folder of the database")
        if name == "remove":
            _add_rules(p)
        elif name not in ("compact", "verify"):
            p.add_argument("--drop-duplicates", action="store_true", help="remove rows that repeat an earlier one")
            p.add_argument("--near-duplicate", type=finite, default=0.999, help="cosine from which a row does so")
            p.add_argument("--ram", help="memory that searching may hold, such as 2GB; chooses the index")
            p.add_argument("--index", metavar="FACTORY", help="faiss' name of an index, or milvus: and a URI or a file")
    words = sys.argv[1:]
    return parser.parse_args(words if words and words[0] in (*COMMANDS, "-h", "--help") else ["build", *words])


def _add_sources(p: argparse.ArgumentParser) -> None:
    p.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    p.add_argument("--config", help="YAML file with 'embedder' and 'database', such as configs/database/emoji.yaml")
    p.add_argument("--source", help="instead: image folder, Parquet file(s) or tar shards")
    p.add_argument("--output", help="folder of the database")
    p.add_argument(
        "--batch-size", type=positive, help="pictures embedded at once (256 if neither given nor configured)"
    )
    add_ray_option(p)
    add_embedding_options(p, "--source")


def _add_rules(p: argparse.ArgumentParser) -> None:
    p.description = f"{p.description} Rows go that meet any of these."
    for option, metavar, text in (
        ("--id", "ID", "image ids"),
        ("--source", "START", "beginnings of uris: a folder, file or web site"),
        ("--licence", "LICENCE", "licences, word for word"),
        ("--where", "COLUMN=VALUE", "values of any metadata column"),
    ):
        p.add_argument(option, action="extend", nargs="+", default=[], metavar=metavar, help=text)
    p.add_argument("--dry-run", action="store_true", help="only say how many rows these are")


@command_line
def main() -> None:
    """Does what the command line asks for."""
    args = parse_args()
    from rdm.cli import database  # after the options, so that --help answers at once

    for line in database.COMMANDS[args.command](args):
        print(line)


if __name__ == "__main__":
    main()
