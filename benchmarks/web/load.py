"""Clients that ask one request after another, and a server that may be killed meanwhile."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.web.good import Ask, Kind
from benchmarks.web.server import Server
from benchmarks.web.visitor import BUSY, Refused, Visitor, WrongAnswerError

PATIENCE = 120.0  # seconds after which an answer counts as lost
PAUSE = 0.25  # seconds before a client asks again
FULL = "Queue is full"
ERRORS = (WrongAnswerError, Refused, httpx.HTTPError, asyncio.TimeoutError)
KEPT = 20  # wrong answers that are reported


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        milliseconds: how long the answers of each kind took, without those that met a dead server.
        wrong: what was wrong with wrong answers.
        lost: what happened to requests that got no answer.
        busy: number of requests that were told that the queue is full.
        met: seconds until the answer of each request that was asked again because the server had been killed.
    """

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    busy: int = 0
    met: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """The number of requests that were answered."""
        return sum(map(len, self.milliseconds.values())) + len(self.met) + self.busy

    def succeeded(self, name: str, seconds: float, tries: int) -> None:
        """Notes an answer that is right."""
        if tries > 1:
            self.met.append(seconds)
        else:
            self.milliseconds[name].append(1000 * seconds)

    def failed(self, name: str, error: Exception) -> None:
        """Notes an answer that is wrong or missing, or that the queue is full."""
        if isinstance(error, Refused) and error.status == BUSY and FULL in error.words:
            self.busy += 1
        elif isinstance(error, WrongAnswerError | Refused):
            self.wrong.append(f"{name}: {error}")
        else:
            self.lost.append(f"{name}: {error!r}")

    def report(self) -> dict[str, Any]:
        """Returns the counts and quantiles as JSON."""
        failures = [*self.lost, *self.wrong]
        return {
            "answered": self.answered,
            "busy": self.busy,
            "lost": len(self.lost),
            "wrong": len(self.wrong),
            **({"failures": failures[:KEPT]} if failures else {}),
            "ms": {kind: quantiles(taken) for kind, taken in sorted(self.milliseconds.items())},
        }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Returns the number of values with their median and their 95th and 99th percentiles."""
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [*values] * 99
    return {"n": len(values), **{f"p{cut}": round(cuts[cut - 1], 1) for cut in (50, 95, 99)}}


def mixed(kinds: Sequence[Kind], n: int) -> list[tuple[str, Ask, int]]:
    """Returns n requests in random order, with the shares of their kinds; each has a number."""
    counts = [round(kind.share * n) for kind in kinds]
    counts[0] += n - sum(counts)
    asked = [(kind.name, kind.ask) for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    random.Random(0).shuffle(asked)  # noqa: S311 (no secret)
    return [(name, ask, number) for number, (name, ask) in enumerate(asked)]


class Crowd:
    """Clients of a server.

    Args:
        server: the server.
        clients: how many ask at the same time.
        tally: what became of their requests.
        end: the time, by ``time.monotonic``, after which nothing is asked.
    """

    def __init__(self, server: Server, clients: int, tally: Tally, end: float) -> None:
        self.server, self.clients, self.tally, self.end = server, clients, tally, end
        self.is_done = False

    async def ask_all(self, asked: Sequence[tuple[str, Ask, int]]) -> Tally:
        """Asks all requests and returns what became of them."""
        waiting = iter(asked)
        await asyncio.gather(*(self._client(waiting) for _ in range(self.clients)))
        self.is_done = True
        return self.tally

    async def _client(self, waiting: Iterator[tuple[str, Ask, int]]) -> None:
        async with httpx.AsyncClient(base_url=self.server.address, timeout=PATIENCE) as http:
            visitor = Visitor(http)
            for name, ask, number in waiting:
                if time.monotonic() > self.end:
                    return
                await self._request(name, ask, visitor, number)

    async def _request(self, name: str, ask: Ask, visitor: Visitor, number: int) -> None:
        """Asks one request; again and again if the server is killed meanwhile or is not there."""
        begin, tries = time.perf_counter(), 0
        while True:
            tries, kills = tries + 1, self.server.kills
            try:
                await asyncio.wait_for(ask(visitor, number), PATIENCE)
            except ERRORS as error:
                met_a_kill = self.server.kills > kills or not self.server.is_up
                if not met_a_kill or time.perf_counter() - begin > PATIENCE:
                    return self.tally.failed(name, error)
                await asyncio.sleep(PAUSE)
            else:
                return self.tally.succeeded(name, time.perf_counter() - begin, tries)


async def killing(crowd: Crowd, after: Sequence[int]) -> list[float]:
    """Kills the server whenever so many requests are answered; returns how many seconds each new start took."""
    took = []
    for count in after:
        while crowd.tally.answered < count and not crowd.is_done:
            await asyncio.sleep(PAUSE)
        crowd.server.kill()
        took.append(await asyncio.to_thread(crowd.server.start))
    return took
