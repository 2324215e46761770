"""Builds or changes a retrieval database and its index. The same command continues a build that was stopped.

The default command is build: build_database.py --config configs/database/emoji.yaml
"""

from __future__ import annotations

import argparse
import sys

from ldm.command_line import HelpFormatter, add_trust_option, command_line, finite, positive
from rdm.cli.embedding import add_embedding_options, add_ray_option

COMMANDS = {
    "build": "embed the pictures of a source (the default command)",
    "append": "embed those pictures of a source that the database does not have yet",
    "remove": "mark rows as removed; searches, neighbour tables and popularity then leave them out",
    "compact": "delete removed rows from the files",
    "merge": "write one database with the rows of several",
    "import": "import CompVis' .npz files, a folder of clip-retrieval, or CompVis' nn_memory (.p) as popularity",
    "verify": "check every byte of the database, its index and its neighbour tables",
}


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        p = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=HelpFormatter
        )
        if name in ("build", "append"):
            _add_sources(p)
        elif name == "merge":
            p.add_argument("databases", nargs="+", help="folders of databases that were made with one CLIP")
            p.add_argument("--output", required=True, help="folder of the new database")
        elif name == "import":
            p.add_argument(
                "paths", nargs="+", help=".npz files or folders of them, a folder with img_emb/, or one .p file"
            )
            p.add_argument(
                "--output",
                required=True,
                help="folder of the new database; with a .p file, of the database that it belongs to",
            )
            p.add_argument(
                "--config",
                help="YAML file whose 'embedder' names the CLIP of the vectors, such as configs/database/compvis.yaml",
            )
            add_trust_option(p)
        else:
            p.add_argument("database", help="folder of the database")
        if name == "remove":
            _add_rules(p)
        elif name not in ("compact", "verify"):
            p.add_argument(
                "--drop-duplicates", action="store_true", help="remove duplicate rows; otherwise they are only listed"
            )
            p.add_argument(
                "--near-duplicate",
                type=finite,
                default=0.999,
                help="a row is a duplicate if its cosine similarity to an earlier row is at least this",
            )
            p.add_argument(
                "--ram",
                help="memory that searching may use, such as 2GB; it decides the kind of index (2GB if not given)",
            )
            p.add_argument(
                "--index",
                metavar="FACTORY",
                help="kind of index: a factory string of faiss, or milvus: and a URI or file",
            )
    words = sys.argv[1:]
    return parser.parse_args(words if words and words[0] in (*COMMANDS, "-h", "--help") else ["build", *words])


def _add_sources(p: argparse.ArgumentParser) -> None:
    p.add_argument("--config", help="YAML file with 'embedder' and 'database', such as configs/database/emoji.yaml")
    p.add_argument("--source", help="in place of --config: image folder, Parquet files or tar shards")
    p.add_argument("--output", help="folder of the database; required with --source, else that of the config")
    p.add_argument(
        "--batch-size", type=positive, help="pictures that are embedded at once; the config's value or 256 if not given"
    )
    add_ray_option(p)
    add_embedding_options(p, "--source")


def _add_rules(p: argparse.ArgumentParser) -> None:
    p.description = f"{p.description} A row is removed if one of the rules --id, --source, --licence and --where holds."
    for option, metavar, text in (
        ("--id", "ID", "rows with one of these ids"),
        ("--source", "START", "rows whose URI begins with one of these: a folder, a file or a web site"),
        ("--licence", "LICENCE", "rows with exactly one of these licences"),
        ("--where", "COLUMN=VALUE", "rows with one of these values in a metadata column"),
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
