"""Measures the page in the browser under load, and prints one line of JSON.

    python -m benchmarks.web [--requests 10000] [--clients 16]

The server is ``scripts/web.py`` at a free port of loopback. The clients ask one request after another, in random
order: loads of the page and of its scripts, endpoints, uploads, samplings of 2 steps, and bad requests. Each answer is
compared with what Python gives, and each bad request must be refused with its own words.

============ ==========================================================================================================
``load``     all requests of ``--requests``, after a warm-up
``killed``   as many again; at a third and at two thirds, the server is killed and started again, and the clients retry
``full``     more samplings at once than the queue takes
``bad``      the answer that each bad request got
============ ==========================================================================================================

``ms`` are times from request to answer in milliseconds. ``memory`` is that of the server in MB: after the warm-up, in
the middle, at the end, and the most that it ever was.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.web.bad import BAD
from benchmarks.web.good import SAMPLING, Kind, good
from benchmarks.web.load import Crowd, Tally, killing, mixed
from benchmarks.web.server import Server
from benchmarks.web.visitor import Visitor
from rdm.sampling.pipeline import Pipeline

BAD_SHARE = 0.05
AT_ONCE = 48  # samplings, of which the queue takes 16


def bad(answers: dict[str, str]) -> Kind:
    """Returns the kind of bad requests, which take turns; their answers are kept by what is bad."""
    turns = itertools.cycle(BAD)

    async def ask(visitor: Visitor, _: int) -> None:
        which = next(turns)
        answers[which.what] = await which.answer(visitor)

    return Kind("bad", BAD_SHARE, ask)


async def load(server: Server, kinds: Sequence[Kind], n: int, clients: int, end: float) -> dict[str, Any]:
    """Returns the figures of n requests and the memory of the server."""
    await Crowd(server, clients, Tally(), end).ask_all(mixed(kinds, max(clients, n // 20)))
    asked, tally, memory, begin = mixed(kinds, n), Tally(), {"start": server.megabytes()["now"]}, time.perf_counter()
    for name, part in (("middle", asked[: n // 2]), ("end", asked[n // 2 :])):
        await Crowd(server, clients, tally, end).ask_all(part)
        memory[name] = server.megabytes()["now"]
    seconds = time.perf_counter() - begin
    memory["most"] = server.megabytes()["most"]
    return {**tally.report(), "seconds": round(seconds, 1), "memory": memory}


async def killed(server: Server, kinds: Sequence[Kind], n: int, clients: int, end: float) -> dict[str, Any]:
    """Returns the figures of n requests while the server is killed and started again twice."""
    crowd = Crowd(server, clients, Tally(), end)
    kills = asyncio.create_task(killing(crowd, [n // 3, 2 * n // 3]))
    tally = await crowd.ask_all(mixed(kinds, n))
    took, met = await kills, tally.met
    gap = {"requests": len(met), "longest_s": round(max(met, default=0.0), 1)}
    return {**tally.report(), "starts_s": [round(each, 1) for each in took], "met_the_gap": gap}


async def full(server: Server, sampling: Kind, end: float) -> dict[str, Any]:
    """Returns the figures of more samplings at once than the queue takes."""
    report = (await Crowd(server, AT_ONCE, Tally(), end).ask_all(mixed([sampling], AT_ONCE))).report()
    return {"asked": AT_ONCE, **report}


async def measure(server: Server, pipeline: Pipeline, n: int, clients: int, seconds: float) -> dict[str, Any]:
    """Returns all figures."""
    answers: dict[str, str] = {}
    kinds = [*good(pipeline), bad(answers)]
    end = time.monotonic() + seconds
    return {
        "load": await load(server, kinds, n, clients, end),
        "full": await full(server, next(kind for kind in kinds if kind.name == SAMPLING), end),
        "killed": await killed(server, kinds, n, clients, end),
        "bad": {each.what: answers.get(each.what, "not asked") for each in BAD},
    }


def main() -> None:
    """Measures the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="models/rdm/emoji", help="checkpoint or run folder")
    parser.add_argument("--requests", type=int, default=10_000, help="number of requests; default: 10000")
    parser.add_argument("--clients", type=int, default=16, help="number of clients; default: 16")
    parser.add_argument(
        "--seconds", type=float, default=3600, help="no request is asked after so many seconds; default: 3600"
    )
    args = parser.parse_args()
    pipeline = Pipeline.load(args.ckpt)
    command = [sys.executable, "scripts/web.py", "--ckpt", args.ckpt]
    with tempfile.TemporaryDirectory() as folder, Server(command, Path(folder)) as server:
        figures = asyncio.run(measure(server, pipeline, args.requests, args.clients, args.seconds))
    print(json.dumps({"benchmark": "web", "requests": args.requests, "clients": args.clients, **figures}))


if __name__ == "__main__":
    main()
