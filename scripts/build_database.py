"""Builds or changes a retrieval database and its index. The same command continues a build that was stopped.

The default command is build: build_database.py --config configs/database/emoji.yaml
"""

from __future__ import annotations

import argparse
import sys

from ldm.command_line import add_trust_option, command_line, finite, positive
from rdm.cli.embedding import add_embedding_options, add_ray_option

COMMANDS = {
    "build": "embed the pictures of a source (the default command)",
    "append": "embed those pictures of a source that the database does not have yet",
    "remove": "mark rows as removed, so that searches, neighbour tables and popularity leave them out",
    "compact": "delete removed rows from the files",
    "merge": "merge several databases into a new one",
    "import": "import CompVis' .npz parts, a folder of clip-retrieval, or an nn_memory (.p) for a database",
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
            p.add_argument("databases", nargs="+", help="folders of databases made by one embedder")
            p.add_argument("--output", required=True, help="folder of the new database")
        elif name == "import":
            p.add_argument(
                "paths", nargs="+", help=".npz parts or folders of such, a folder with img_emb, or a .p file"
            )
            p.add_argument("--output", required=True, help="folder of the new database; for a .p file, of its database")
            p.add_argument("--config", help="YAML file with the 'embedder' that made the vectors; see configs/database")
            add_trust_option(p)
        else:
            p.add_argument("database", help="folder of the database")
        if name == "remove":
            _add_rules(p)
        elif name not in ("compact", "verify"):
            p.add_argument("--drop-duplicates", action="store_true", help="remove rows that repeat an earlier row")
            p.add_argument("--near-duplicate", type=finite, default=0.999, help="cosine similarity of repeated rows")
            p.add_argument("--ram", help="memory that the search may use, such as 2GB; chooses the index")
            p.add_argument("--index", metavar="FACTORY", help="faiss' factory string, or milvus: with a URI or file")
    words = sys.argv[1:]
    return parser.parse_args(words if words and words[0] in (*COMMANDS, "-h", "--help") else ["build", *words])


def _add_sources(p: argparse.ArgumentParser) -> None:
    p.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    p.add_argument("--config", help="YAML file with 'embedder' and 'database', such as configs/database/emoji.yaml")
    p.add_argument("--source", help="instead of --config: image folder, Parquet file(s) or tar shards")
    p.add_argument("--output", help="folder of the database")
    p.add_argument("--batch-size", type=positive, help="pictures embedded at once; as configured or 256 if not given")
    add_ray_option(p)
    add_embedding_options(p, "--source")


def _add_rules(p: argparse.ArgumentParser) -> None:
    p.description = f"{p.description} A row is removed if it matches any of these options."
    for option, metavar, text in (
        ("--id", "ID", "image ids"),
        ("--source", "START", "beginnings of URIs: a folder, a file or a web site"),
        ("--licence", "LICENCE", "licences, which must match exactly"),
        ("--where", "COLUMN=VALUE", "values of any metadata column"),
    ):
        p.add_argument(option, action="extend", nargs="+", default=[], metavar=metavar, help=text)
    p.add_argument("--dry-run", action="store_true", help="only count the rows")


@command_line
def main() -> None:
    """Runs the command."""
    args = parse_args()
    from rdm.cli import database  # loads torch and faiss; --help must not wait for that

    for line in database.COMMANDS[args.command](args):
        print(line)


if __name__ == "__main__":
    main()
