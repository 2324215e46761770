"""The commands of ``scripts/build_database.py``; each yields lines to print."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config import read_config
from ldm.util import check_mapping
from rdm.convert.nn_memory import read_nn_memory
from rdm.retrieval.builder.build import prepare_database
from rdm.retrieval.config import check_database, embedder_config, load_embedder, require, source_config
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.summary import summary
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.index.faiss_index import NeighbourIndex, current_index
from rdm.retrieval.index.search import SearchIndex, is_current
from rdm.retrieval.index.tune import caption_vectors
from rdm.retrieval.neighbours.popularity import write_popularity
from rdm.retrieval.upkeep.add import NewPicture, add_pictures, added_last
from rdm.retrieval.upkeep.append import append_pictures
from rdm.retrieval.upkeep.compact import compact
from rdm.retrieval.upkeep.duplicates import FILE as DUPLICATES
from rdm.retrieval.upkeep.duplicates import Duplicates, find_duplicates, write_duplicates
from rdm.retrieval.upkeep.imports import import_database
from rdm.retrieval.upkeep.merge import merge_databases
from rdm.retrieval.upkeep.verify import verify
from rdm.sampling.given import open_given


def build_command(args: argparse.Namespace) -> Iterator[str]:
    """Builds a database, or completes one whose build was interrupted."""
    config, database = _sections(args)
    embedder = load_embedder(config)
    yield from _with_index(prepare_database(embedder=embedder, **database), args, embedder)


def append_command(args: argparse.Namespace) -> Iterator[str]:
    """Embeds the pictures of a source that a database does not have yet."""
    config, database = _sections(args)
    embedder = load_embedder(config)
    yield from _with_index(append_pictures(embedder=embedder, **database), args, embedder)


def add_command(args: argparse.Namespace) -> Iterator[str]:
    """Embeds single pictures and keeps them in the folder of a database.

    If the last rows are these pictures with the same words, the command was stopped after it had added them. It adds
    none again, and builds the index if that is missing.
    """
    known = {"licence": args.licence, "attribution": args.attribution, "caption": args.caption}
    pictures = [NewPicture(open_given(file).image, **known) for file in args.pictures]
    database = RetrievalDatabase.open(args.database)
    rows, said = added_last(database, pictures), "rows {} to {} are these pictures"
    if rows is None:
        said = "added rows {} to {}"
        embedder = load_embedder(embedder_config(args.embedder, args.pretrained))
        database, rows = add_pictures(args.database, pictures, embedder)
    factory = current_index(database).card["factory"]
    yield f"{database.path}: {said.format(rows[0], rows[-1])}; {len(database)} rows, index {factory}"


def remove_command(args: argparse.Namespace) -> Iterator[str]:
    """Marks the rows that match the rules as removed; with ``--dry-run`` only counts them.

    Raises:
        ValueError: there is no rule, or a ``--where`` rule does not have the form ``COLUMN=VALUE``.
    """
    database, where = RetrievalDatabase.open(args.database), dict[str, list[str]]()
    for rule in args.where:
        column, equals, value = rule.partition("=")
        if not equals:
            raise ValueError(f"--where: got '{rule}', expected COLUMN=VALUE")
        where.setdefault(column, []).append(value)
    if not (args.id or args.source or args.licence or where):
        raise ValueError("expected at least one of --id, --source, --licence, --where; see --help")
    rows = find_rows(database, ids=args.id, sources=args.source, licences=args.licence, where=where)
    new = int(np.count_nonzero(database.is_alive(rows)))
    if not args.dry_run:
        new = database.remove(rows)
    what = "would be removed" if args.dry_run else "removed"
    yield f"{database.path}: {new} rows {what}; {len(rows)} rows match, {len(rows) - new} were removed before"


def compact_command(args: argparse.Namespace) -> Iterator[str]:
    """Rewrites a database without its removed rows."""
    yield _line_on_index(NeighbourIndex.open(compact(args.database), replace=True))


def merge_command(args: argparse.Namespace) -> Iterator[str]:
    """Merges several databases into a new one."""
    yield from _with_index(merge_databases(args.databases, args.output), args)


def import_command(args: argparse.Namespace) -> Iterator[str]:
    """Imports the database of another project, or the popularity of a database's rows."""
    if [Path(path).suffix for path in args.paths] == [".p"]:
        database, (rows, counts) = RetrievalDatabase.open(args.output), read_nn_memory(args.paths[0])
        write_popularity(database, rows, counts, args.paths[0])
        counted = f"{len(rows)} of {len(database)} rows are neighbours of a picture, {counts.sum()} times in total"
        yield f"{database.path}: {counted}"
        return
    if not args.config:
        raise ValueError("expected --config FILE with the embedder that made the vectors, see configs/database")
    (config,) = require(read_config([args.config]), ("embedder",), args.config)
    embedder = load_embedder(config)
    yield from _with_index(import_database(args.paths, args.output, embedder), args, embedder)


def show_command(args: argparse.Namespace) -> Iterator[str]:
    """Says what a database is."""
    for line in summary(RetrievalDatabase.open(args.database)).lines():
        yield f"{args.database}: {line}"


def verify_command(args: argparse.Namespace) -> Iterator[str]:
    """Verifies the files of a database, its index and its neighbour tables."""
    for line in verify(RetrievalDatabase.open(args.database)):
        yield f"{args.database}: {line}"


def _sections(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the configs of the embedder and the database from the command line."""
    if bool(args.config) == bool(args.source):
        raise ValueError("expected either --config FILE or --source PICTURES; see --help")
    if args.source and not args.output:
        raise ValueError("got --source without --output, expected the folder of the database as --output FOLDER")
    if args.config:
        embedder, database = require(read_config([args.config], args.overrides), ("embedder", "database"), args.config)
        check_mapping(database, "database")
    else:
        embedder = embedder_config(args.embedder, args.pretrained)
        database = {"source": source_config(args.source, args.size)}
    given = {"path": args.output, "batch_size": args.batch_size, "ray": args.ray}
    database = {**(database or {}), **{key: value for key, value in given.items() if value is not None}}
    check_database(database)
    return embedder, database


def _with_index(
    database: RetrievalDatabase, args: argparse.Namespace, embedder: Embedder | None = None
) -> Iterator[str]:
    """Builds the index of a database if it is missing or out of date, and yields lines on it and on duplicate rows.

    Duplicates are looked for if rows are new or ``drop_duplicates`` asks for it: in a new index before it is saved, so
    that a process that is killed meanwhile leaves no index, and the next one looks again.

    Args:
        database: the database.
        args: the command line: ``index`` and ``ram`` choose the index, ``near_duplicate`` and ``drop_duplicates`` say
            what is a duplicate and whether it is removed.
        embedder: the embedder that made the database, with which the index is tuned by captions; None to do without.
    """
    wanted = args.drop_duplicates or not is_current(database, database.path / "index")
    found: list[Duplicates] = []

    def look(index: SearchIndex) -> None:
        found.append(_listed_duplicates(database, index, args.near_duplicate))

    index = NeighbourIndex.open(
        database,
        args.index,
        ram=args.ram,
        replace=True,
        texts=None if embedder is None else partial(caption_vectors, database, embedder),
        before_saving=look if wanted else None,
    )
    yield _line_on_index(index)
    if wanted and not found:  # the index was there
        look(index)
    if found and len(found[0].rows):
        yield _line_on_duplicates(database, found[0], args)


def _line_on_index(index: SearchIndex) -> str:
    database = index.database
    return f"{database.path}: {len(database)} rows of {database.dim} numbers, index {index.card['factory']}"


def _listed_duplicates(database: RetrievalDatabase, index: SearchIndex, near: float) -> Duplicates:
    """Returns the duplicate rows of a database, after they are written to its list of them."""
    duplicates = find_duplicates(database, index, near)
    if len(duplicates.rows):
        write_duplicates(database, duplicates)
    return duplicates


def _line_on_duplicates(database: RetrievalDatabase, duplicates: Duplicates, args: argparse.Namespace) -> str:
    """Removes duplicates if that is asked for, and says how many there are."""
    what = "--drop-duplicates removes them"
    if args.drop_duplicates:
        what = f"{database.remove(duplicates.rows)} of them removed"
    return (
        f"{database.path}: {duplicates.exact} rows have the pixels of an earlier row, "
        f"{len(duplicates.rows) - duplicates.exact} nearly (cosine at least {args.near_duplicate}), see {DUPLICATES}; "
        f"{what}"
    )


COMMANDS = {
    "build": build_command,
    "append": append_command,
    "add": add_command,
    "remove": remove_command,
    "compact": compact_command,
    "merge": merge_command,
    "import": import_command,
    "show": show_command,
    "verify": verify_command,
}
