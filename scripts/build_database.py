"""Builds a retrieval database and its index; a build that was stopped continues with the same command."""

from __future__ import annotations

import argparse

from ldm.util import command_line
from rdm.options import add_embedding_options, positive


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--config", help="YAML file with 'embedder' and 'database', such as configs/database/emoji.yaml"
    )
    parser.add_argument("--source", help="instead: image folder, Parquet file(s) or tar shards")
    parser.add_argument("--output", help="folder of the database")
    parser.add_argument(
        "--batch-size", type=positive, help="pictures embedded at once (256 if neither given nor configured)"
    )
    add_embedding_options(parser, "--source")
    return parser.parse_args()


@command_line
def main() -> None:
    """Builds what the command line asks for."""
    args = parse_args()
    from ldm.config import read_config
    from ldm.util import check_mapping
    from rdm.retrieval.builder import prepare_database
    from rdm.retrieval.config import check_database, embedder_config, load_embedder, require, source_config
    from rdm.retrieval.index import NeighbourIndex

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
    given = {"path": args.output, "batch_size": args.batch_size}
    database |= {key: value for key, value in given.items() if value is not None}
    check_database(database)
    built = prepare_database(embedder=load_embedder(embedder), **database)
    index = NeighbourIndex.open(built)
    print(f"{built.path}: {len(built)} rows of {built.dim} numbers, index {index.card['factory']}")


if __name__ == "__main__":
    main()
