"""Runs the benchmarks: `python -m benchmarks [name ...]` prints one line of JSON for each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from benchmarks import attention, builder, loader, networks, rarm, retrieval, streams

BENCHMARKS: dict[str, Callable[[], dict[str, float]]] = {
    "attention": attention.run,
    "builder": builder.run,
    "loader": loader.run,
    "networks": networks.run,
    "rarm": rarm.run,
    "retrieval": retrieval.run,
    "streams": streams.run,
}


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"benchmarks to run: {', '.join(BENCHMARKS)}; all if none is given"
    )
    names = parser.parse_args().names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark '{name}', expected one of {', '.join(BENCHMARKS)}")
        print(json.dumps({"benchmark": name, **BENCHMARKS[name]()}), flush=True)


if __name__ == "__main__":
    main()
