"""Finds the neighbours of every training picture and writes the tables that training reads."""

from __future__ import annotations

import argparse

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, finite, positive
from rdm.cli.embedding import add_embedding_options


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--config", help="training config: makes the tables of all its data sets, and the database if it is missing"
    )
    parser.add_argument("--database", help="in place of --config: folder of a finished database")
    parser.add_argument(
        "--images", help="with --database: pictures that get neighbours: image folder, Parquet files or tar shards"
    )
    parser.add_argument("--split", help="with --images: only the pictures of this split, of Parquet files")
    parser.add_argument(
        "--output", help="with --database: folder of the table; neighbours/train in the database if not given"
    )
    parser.add_argument(
        "--k", type=positive, help="neighbours that are stored for each picture; the config's value or 20 if not given"
    )
    parser.add_argument(
        "--near-duplicate",
        type=finite,
        help="a row is no neighbour of a picture if their cosine similarity is at least this; the config's value or "
        "0.999 if not given",
    )
    parser.add_argument(
        "--same-outline",
        type=finite,
        help="a row is no neighbour of a picture if its outline correlates at least this much with that of the picture "
        "or of a nearer neighbour; the config's value or none if not given, and none if above 1",
    )
    parser.add_argument(
        "--patches-per-side",
        type=positive,
        help="cut each picture into N x N patches with neighbours of their own; the config's value or 1 if not given",
    )
    add_embedding_options(parser, "--database")
    return parser.parse_args()


@command_line
def main() -> None:
    """Builds the neighbour tables."""
    args = parse_args()
    # These imports load torch and faiss; --help must not wait for that.
    from ldm.config import read_config
    from ldm.util import check_mapping, instantiate_from_config
    from rdm.retrieval.config import embedder_config, load_embedder, require, source_config
    from rdm.retrieval.database.outlines import Outlines
    from rdm.retrieval.database.rows import RetrievalDatabase
    from rdm.retrieval.index.faiss_index import NeighbourIndex
    from rdm.retrieval.neighbours.build import build_neighbour_table

    if bool(args.config) == bool(args.database and args.images):
        raise ValueError("expected either --config FILE or --database FOLDER with --images PICTURES; see --help")
    options = {"near_duplicate": args.near_duplicate, "patches_per_side": args.patches_per_side}
    given = {key: value for key, value in options.items() if value is not None}
    if args.config:
        given |= {} if args.same_outline is None else {"same_outline": args.same_outline}
        (data,) = require(read_config([args.config], args.overrides), ("data",), args.config)
        check_mapping(data, "data")
        stored = {"stored_k": args.k} if args.k is not None else {}
        if data.get("target") != "rdm.data.RetrievalDataModule":
            raise ValueError(f"{args.config}: data is {data.get('target')}, expected rdm.data.RetrievalDataModule")
        module = instantiate_from_config({**data, "params": {**data.get("params", {}), **given, **stored}})
        module.prepare_data()
        tables = [module.table(name) for name in module.table_names]
    else:
        embedder = load_embedder(embedder_config(args.embedder, args.pretrained))
        database = RetrievalDatabase.open(args.database, embedder)
        images = instantiate_from_config(source_config(args.images, args.size, args.split))
        output = args.output or database.path / "neighbours" / "train"
        options = {**given, "k": args.k if args.k is not None else 20}
        options["outlines"] = Outlines.of(database, args.same_outline)
        index = NeighbourIndex.open(database)
        tables = [build_neighbour_table(output, images, embedder, database, index, **options)]
    for table in tables:
        print(f"{table.path}: {len(table)} pictures, {table.k} neighbours each")


if __name__ == "__main__":
    main()
