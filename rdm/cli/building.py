"""The command-line options of ``scripts/build_database.py``."""

from __future__ import annotations

import argparse

from ldm.command_line import add_trust_option, finite, positive
from rdm.cli.embedding import add_embedding_options, add_ray_option


def add_source_options(p: argparse.ArgumentParser) -> None:
    """Adds where the pictures of a database come from, and where it is written."""
    p.add_argument("--config", help="YAML file with 'embedder' and 'database', such as configs/database/emoji.yaml")
    p.add_argument("--source", help="in place of --config: image folder, Parquet files or tar shards")
    p.add_argument("--output", help="folder of the database; required with --source, else that of the config")
    p.add_argument(
        "--batch-size", type=positive, help="pictures that are embedded at once; the config's value or 256 if not given"
    )
    add_ray_option(p)
    add_embedding_options(p, "--source")


def add_import_options(p: argparse.ArgumentParser) -> None:
    """Adds what is imported, and into which database."""
    p.add_argument("paths", nargs="+", help=".npz files or folders of them, a folder with img_emb/, or one .p file")
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


def add_index_options(p: argparse.ArgumentParser) -> None:
    """Adds how duplicates are treated and which index is built."""
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
        "--ram", help="memory that searching may use, such as 2GB; it decides the kind of index (2GB if not given)"
    )
    p.add_argument(
        "--index", metavar="FACTORY", help="kind of index: a factory string of faiss, or milvus: and a URI or file"
    )


def add_removal_options(p: argparse.ArgumentParser) -> None:
    """Adds the rules that say which rows are removed."""
    p.description = f"{p.description} A row is removed if one of the rules --id, --source, --licence and --where holds."
    for option, metavar, text in (
        ("--id", "ID", "rows with one of these ids"),
        ("--source", "START", "rows whose URI begins with one of these: a folder, a file or a web site"),
        ("--licence", "LICENCE", "rows with exactly one of these licences"),
        ("--where", "COLUMN=VALUE", "rows with one of these values in a metadata column"),
    ):
        p.add_argument(option, action="extend", nargs="+", default=[], metavar=metavar, help=text)
    p.add_argument("--dry-run", action="store_true", help="only count the rows")


def add_picture_options(p: argparse.ArgumentParser) -> None:
    """Adds which pictures are added, and what is known of them."""
    p.add_argument("pictures", nargs="+", help="the files of the pictures")
    p.add_argument("--licence", required=True, help="their licence, such as CC-BY-4.0")
    p.add_argument("--attribution", required=True, help="who made them, as the licence asks for it")
    p.add_argument("--caption", default="", help="what they show")
    p.add_argument("--embedder", default="models/clip/emoji", help="the CLIP of the database: its folder or name")
    p.add_argument("--pretrained", help="open_clip's name of the weights, if --embedder is the name of a model")
    add_trust_option(p)
