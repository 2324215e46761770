"""The load of the page: counts and quantiles, and a small load of a tiny model whose server is killed meanwhile."""

import asyncio
import base64
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from toy import rdm_config, ship  # noqa: E402

from benchmarks.web.__main__ import bad  # noqa: E402
from benchmarks.web.bad import BAD  # noqa: E402
from benchmarks.web.good import PNG, TITLE, Kind, asset, check_rows, good, page  # noqa: E402
from benchmarks.web.load import Crowd, Tally, killing, mixed, quantiles  # noqa: E402
from benchmarks.web.server import Server  # noqa: E402
from benchmarks.web.visitor import Refused, Visitor, WrongAnswerError  # noqa: E402
from rdm.sampling.pipeline import Pipeline  # noqa: E402
from rdm.web.server import serving  # noqa: E402
from rdm.web.studio import Studio  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("load")
    return Pipeline.load(str(ship(folder / "model", rdm_config(folder))))


def standing_in(folder: Path, body: bytes) -> list[str]:
    """The command of a server that answers everything with a body after a while."""
    (folder / "serve.py").write_text(
        "import http.server, sys, time\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        time.sleep(0.01)\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        f"        self.wfile.write({body!r})\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[-1])), Handler).serve_forever()\n"
    )
    return [sys.executable, str(folder / "serve.py")]


async def nothing(visitor: Visitor, number: int) -> None:
    del visitor, number


def test_requests_have_the_shares_of_their_kinds_and_a_number_each() -> None:
    asked = mixed([Kind("a", 0.5, nothing), Kind("b", 0.333, nothing), Kind("c", 0.167, nothing)], 100)
    assert Counter(name for name, _, _ in asked) == {"a": 50, "b": 33, "c": 17}
    assert [number for _, _, number in asked] == list(range(100))
    assert [name for name, _, _ in asked] != sorted(name for name, _, _ in asked)


def test_quantiles_are_those_of_the_values() -> None:
    assert quantiles([float(value) for value in range(101)]) == {"n": 101, "p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert quantiles([7.0]) == {"n": 1, "p50": 7.0, "p95": 7.0, "p99": 7.0}


def test_every_request_counts_once() -> None:
    tally = Tally()
    tally.succeeded("page", 0.25, 1)
    tally.succeeded("page", 9.0, 3)
    tally.failed("sampling", Refused(503, "Queue is full. Max size is 16 and size is 16."))
    tally.failed("page", Refused(503, "out of order"))
    tally.failed("page", WrongAnswerError("the page without its title"))
    tally.failed("page", TimeoutError())
    report = tally.report()
    assert (report["answered"], report["busy"], report["lost"], report["wrong"]) == (3, 1, 1, 2)
    assert tally.met == [9.0] and report["ms"]["page"] == {"n": 1, "p50": 250.0, "p95": 250.0, "p99": 250.0}
    assert len(report["failures"]) == 3 and "out of order" in report["failures"][1]


def test_every_kind_of_request_gets_its_answer(tiny: Pipeline) -> None:
    answers: dict[str, str] = {}
    refused, asked = bad(answers), [*good(tiny)]
    assert round(sum(kind.share for kind in (*asked, refused)), 9) == 1

    async def ask(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            for kind in (*asked, *[refused] * len(BAD)):
                await kind.ask(Visitor(http), 0)

    with Studio({tiny.retriever.database.path.name: tiny}) as studio, serving(studio) as address:
        asyncio.run(ask(address))
    assert list(answers) == [each.what for each in BAD]


def test_wrong_answers_are_noticed(tmp_path: Path) -> None:
    async def ask(address: str) -> None:
        async with httpx.AsyncClient(base_url=address) as http:
            for wrong in (page, asset):
                with pytest.raises(WrongAnswerError):
                    await wrong(Visitor(http), 0)

    with Server(standing_in(tmp_path, b"something else"), tmp_path) as server:
        asyncio.run(ask(server.address))
    row = {"row": 3, "similarity": 0.5}
    check_rows([{**row, "png": base64.b64encode(PNG).decode()}], [row], "a flag")
    for other in ({"row": 4}, {"similarity": 0.6}, {"png": ""}):
        with pytest.raises(WrongAnswerError):
            check_rows([{**row, "png": base64.b64encode(PNG).decode(), **other}], [row], "a flag")


def test_no_request_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    asked = mixed([Kind("page", 1, page)], 400)

    async def ask(server: Server) -> list[float]:
        crowd = Crowd(server, 4, Tally(), time.monotonic() + 60)
        kills = asyncio.create_task(killing(crowd, [100, 200]))
        report = (await crowd.ask_all(asked)).report()
        assert (report["answered"], report["lost"], report["wrong"]) == (len(asked), 0, 0), report
        assert crowd.tally.met
        return await kills

    with Server(standing_in(tmp_path, TITLE), tmp_path) as server:
        assert len(asyncio.run(ask(server))) == 2 == server.kills
        memory = server.megabytes()
        assert 5 < memory["now"] <= memory["most"]


def test_what_is_not_asked_in_time_is_not_asked(tmp_path: Path) -> None:
    with Server(standing_in(tmp_path, TITLE), tmp_path) as server:
        crowd = Crowd(server, 2, Tally(), time.monotonic())
        assert asyncio.run(crowd.ask_all(mixed([Kind("page", 1, page)], 9))).answered == 0
        assert asyncio.run(killing(crowd, [5])) and server.kills == 1


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such model"):
        Server([sys.executable, "-c", "raise SystemExit('no such model')"], tmp_path).start()
