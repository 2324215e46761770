"""Databases that the page changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import rdm_config, ship

from ldm.locks import building
from rdm.loading import with_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.search import read_card
from rdm.retrieval.neighbours.table import NeighbourTable
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.retrieval.upkeep.compact import compact
from rdm.sampling.pipeline import Pipeline
from rdm.web.asking import Ask, jobs
from rdm.web.changes import add, fresh, removal, remove
from rdm.web.drawing import Drawn, Job
from rdm.web.inspection import again, compared, inspected
from rdm.web.rows import decoded_png, search
from rdm.web.studio import Studio


@pytest.fixture
def studio(loaded: Pipeline, tmp_path: Path) -> Iterator[Studio]:
    """With a database of its own, under two names."""
    shutil.copytree(loaded.retriever.database.path, tmp_path / "flags")
    pipeline = with_database(loaded, tmp_path / "flags")
    with Studio({"flags": pipeline, "same": with_database(pipeline, tmp_path / "flags")}, allow_changes=True) as studio:
        yield studio


def images_of(studio: Studio, asked: list[Job]) -> list[Drawn]:
    return [event for event in studio.draw(asked) if isinstance(event, Drawn)]


def ring(shade: int = 0) -> Image.Image:
    grey = np.asarray(Image.radial_gradient("L").resize((20, 16)))
    return Image.fromarray(np.stack([grey, 255 - grey, np.full_like(grey, shade)], axis=2))


def known(**others: str) -> dict[str, str]:
    return {"licence": "CC0-1.0", "attribution": "A. Uthor", **others}


def test_rows_are_counted_first_and_removed_with_the_confirmed_count(studio: Studio) -> None:
    database = studio.pipeline("flags").retriever.database
    database.remove([4])
    found = removal(studio, "flags", "3-5, 9", ["noto.parquet#"])
    noto = np.flatnonzero(database.values("style", np.arange(40)) == "noto")
    expected = sorted({3, 5, 9, *noto.tolist()} - {4})
    assert found.rows.tolist() == expected and found.before == 1
    assert found.words() == f"{len(expected)} of 39 rows would be removed; 1 more that match are removed already"
    with pytest.raises(ValueError, match=f"confirmed number 3, but {len(expected)} of 39 rows"):
        remove(studio, "flags", "3-5, 9", ["noto.parquet#"], count=3)
    assert database.living_count == 39
    assert remove(studio, "flags", "3-5, 9", ["noto.parquet#"], count=len(expected)) == len(expected)
    for name in ("flags", "same"):
        left = {row.number for row in search(studio.pipeline(name), "a flag", k=100)}
        assert left == set(range(40)) - set(expected) - {4}


def test_what_cannot_be_removed_changes_nothing(studio: Studio, loaded: Pipeline) -> None:
    for rows, sources, count, message in (
        ("", [], 1, "neither rows nor a source"),
        (" ", [""], 1, "neither rows nor a source"),
        ("40", [], 1, "0 to 39"),
        ("", ["nothing"], 0, "0 of 40 rows"),
        ("0-39", [], 40, "40 of 40 rows .* expected that some stay"),
    ):
        with pytest.raises(ValueError, match=message):
            remove(studio, "flags", rows, sources, count)
    with pytest.raises(ValueError, match="'other', expected one of flags, same"):
        remove(studio, "other", "1", count=1)
    with Studio({"flags": loaded}) as closed:
        for change in (lambda: remove(closed, "flags", "1", count=1), lambda: add(closed, "flags", [ring()], "x", "y")):
            with pytest.raises(ValueError, match="--allow-changes"):
                change()
    assert studio.pipeline("flags").retriever.database.living_count == 40
    assert loaded.retriever.database.living_count == 40


def test_an_added_picture_is_found_at_once_under_every_name(studio: Studio) -> None:
    studio.pipeline("same: style=noto")
    before, picture = studio.pipeline("flags"), ring()
    nearest = search(before, picture=picture, k=1)[0]
    rows = add(studio, "flags", [picture, ring(200)], captions=["a ring", ""], **known(licence=" MIT "))
    assert rows.tolist() == [40, 41]
    for name in ("flags", "same"):
        found = search(studio.pipeline(name), picture=picture, k=1)[0]
        assert found.number == 40 and (found.similarity or 0) > (nearest.similarity or 0)
        assert (found.about["caption"], found.about["licence"]) == ("a ring", "MIT") and found.png is not None
    assert [row.number for row in search(studio.pipeline("same"), only=["licence=MIT", "style="], k=99)] == [40, 41]
    assert len(studio.pipeline("same: style=noto").retriever.database) == 42
    assert search(before, picture=picture, k=1)[0].number == nearest.number  # what was drawing with it goes on


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Studio]:
    """Whose first database is the model's own, with the table that popular rows are counted from."""
    with Studio.open(str(ship(tmp_path / "model", rdm_config(tmp_path))), allow_changes=True) as studio:
        yield studio


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def ask_popular(studio: Studio) -> list[Job]:
    return jobs(studio, Ask(way="popular", k=2, settings={"steps": 2}))


def test_popular_rows_are_counted_again_after_an_addition(shipped: Studio) -> None:
    data = shipped.pipeline().data
    assert len(ask_popular(shipped)) == 1
    with building(data.table_path("train")):  # so that the count has to wait
        add(shipped, shipped.names[0], [ring()], **known())
        database = shipped.pipeline().retriever.database
        assert "in the background" in shipped.popular.note(shipped.pipeline())
        with pytest.raises(ValueError, match="Popular rows are counted again in the background"):
            ask_popular(shipped)
        add(shipped, shipped.names[0], [ring(200)], **known())
    until(lambda: not shipped.popular.note(shipped.pipeline()))
    database = shipped.pipeline().retriever.database
    table = NeighbourTable.open(data.table_path("train"), database)
    assert len(database) == 42 and table.card["database_rows"] == 42 and len(ask_popular(shipped)) == 1
    built = (table.path / "neighbours.npy").stat()
    reopened = Pipeline.load(str(shipped.pipeline().path))  # as when the page is started anew
    assert reopened.retriever.database.fingerprint == database.fingerprint
    assert (table.path / "neighbours.npy").stat() == built  # and nothing had to be built


def test_a_count_that_fails_is_said_and_one_that_is_ended_writes_nothing(
    shipped: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    table = shipped.pipeline().data.table_path("train")
    (table / "neighbours.npy").unlink()
    (table / "neighbours.npy").mkdir()  # which no file can replace
    add(shipped, shipped.names[0], [ring()], **known())
    until(lambda: "the log of the page says why" in shipped.popular.note(shipped.pipeline()))
    assert "were not counted again" in caplog.text
    shipped.popular.end(60)
    (table / "neighbours.npy").rmdir()
    add(shipped, shipped.names[0], [ring(200)], **known())
    assert "search_neighbors.py" in shipped.popular.note(shipped.pipeline())
    assert not (table / "neighbours.npy").exists() and not (table / "neighbours.json").exists()


def test_a_further_database_says_what_counts_its_popular_rows(studio: Studio) -> None:
    add(studio, "flags", [ring()], **known())
    assert "until search_neighbors.py" in studio.popular.note(studio.pipeline("flags"))
    with pytest.raises(ValueError, match=r"until search_neighbors\.py"):
        ask_popular(studio)


def test_an_image_is_made_again_after_an_addition_and_nothing_is_said_of_other_bits(
    studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = images_of(studio, jobs(studio, Ask(words=["a flag"], settings={"steps": 2})))
    before = studio.pipeline().retriever.database
    add(studio, "flags", [ring()], **known())
    database = studio.pipeline().retriever.database
    assert database.fingerprint != before.fingerprint and database.has_grown_from(before.fingerprint)
    assert not before.has_grown_from(database.fingerprint) and not database.has_grown_from("another")
    found = inspected(studio, first.png)
    (same,) = images_of(studio, [again(studio, found)])
    assert found.place == "flags" and compared(found.picture, decoded_png(same.png)).equal
    assert "last bits" not in caplog.text


def test_what_cannot_be_added_is_said_and_changes_nothing(studio: Studio) -> None:
    for pictures, captions, others, message in (
        ([], [], {}, "no picture"),
        ([ring()], [""], {"licence": " "}, "picture 1: got no licence"),
        ([ring(), ring()], ["", ""], {}, "picture 2 has the pixels of picture 1"),
    ):
        with pytest.raises(ValueError, match=message):
            add(studio, "flags", pictures, captions=captions, **known(**others))
    assert len(RetrievalDatabase.open(studio.pipeline("flags").retriever.database.path)) == 40


def test_the_page_goes_over_to_what_another_process_has_made_of_the_database(studio: Studio) -> None:
    pipeline = studio.pipeline("flags")
    path, embedder = pipeline.retriever.database.path, pipeline.retriever.embedder
    assert fresh(studio, "flags") is pipeline
    add_pictures(path, [NewPicture(ring(), "MIT", "A. Uthor")], embedder)  # and is killed before it builds the index
    assert search(fresh(studio, "flags"), picture=ring(), k=1)[0].number == 40
    RetrievalDatabase.open(path).remove([0, 1])
    compact(path)
    assert search(fresh(studio, "same"), picture=ring(), k=1)[0].number == 38
    assert len(studio.pipeline("flags").retriever.database) == 39


def test_a_page_that_is_started_builds_the_stale_index_of_a_further_database(loaded: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(loaded.retriever.database.path, tmp_path / "more")
    add_pictures(tmp_path / "more", [NewPicture(ring(), "MIT", "A. Uthor")], loaded.retriever.embedder)
    with Studio.open(str(loaded.path), {"more": str(tmp_path / "more")}) as opened:
        assert read_card(opened.pipeline("more").retriever.database, tmp_path / "more/index")["rows"] == 41
        assert search(opened.pipeline("more"), picture=ring(), k=1)[0].number == 40


def test_changes_and_searches_at_the_same_time_lose_nothing(studio: Studio) -> None:
    def work(number: int) -> None:
        if number % 3 == 0:
            (row,) = add(studio, "flags", [ring(number)], captions=[f"ring {number}"], **known())
            found = search(studio.pipeline("same"), picture=ring(number), k=10)
            assert f"ring {number}" in [each.about["caption"] for each in found] and row >= 40
        elif number % 3 == 1:
            assert remove(studio, "flags", str(number), count=1) == 1
            assert number not in [row.number for row in search(studio.pipeline("flags"), "a flag", k=99)]
        else:
            for _ in range(10):
                rows = search(fresh(studio, "same"), "a flag", k=5)
                assert len(rows) == 5 and all(row.png for row in rows if not row.removed)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(18))) == [None] * 18
    database = RetrievalDatabase.open(studio.pipeline("flags").retriever.database.path)
    assert (len(database), database.removed) == (46, 6)
    assert sorted(np.flatnonzero(~database.is_alive()).tolist()) == [1, 4, 7, 10, 13, 16]
    database.verify()


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_web_changes import known, ring
from rdm.loading import with_database
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.pipeline import Pipeline
from rdm.web.asking import Ask, jobs
from rdm.web.changes import add, fresh
from rdm.web.rows import search
from rdm.web.studio import Studio

loaded = Pipeline.load({model!r})
path, source = {path!r}, loaded.retriever.database.path

def die_at(step):
    def count(event, arguments):
        nonlocal step
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR) and path in str(arguments[0])
        if writes or event in ("os.rename", "os.remove", "os.link"):
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

loaded.retriever.embedder.texts(["a flag"])
for step in range(1000):
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, path)
    studio = Studio({{"flags": with_database(loaded, path)}}, allow_changes=True)
    child = os.fork()
    if child == 0:
        die_at(step)
        add(studio, "flags", [ring(1), ring(2)], **known())
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    RetrievalDatabase.open(path).verify()
    first = search(fresh(studio, "flags"), picture=ring(1), k=1)[0]
    again = Studio({{"flags": with_database(loaded, path)}})
    same = search(again.pipeline("flags"), picture=ring(1), k=1)[0]
    print(killed, len(again.pipeline("flags").retriever.database), first.number, same.number, flush=True)
    for each in (studio, again):
        each.close()
    if not killed:
        break
"""


def test_whenever_the_page_is_killed_while_it_adds_it_finds_the_rows_before_or_all(
    loaded: Pipeline, tmp_path: Path
) -> None:
    root = Path(__file__).parents[3]
    places = {"root": str(root), "tests": str(Path(__file__).parent), "path": str(tmp_path / "flags")}
    command = [sys.executable, "-c", KILLED.format(model=str(loaded.path), **places)]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True, env=environment).stdout
    states = [line.split() for line in said.splitlines()]
    assert len(states) > 15 and [killed for killed, *_ in states] == ["True"] * (len(states) - 1) + ["False"]
    for _, rows, first, same in states:
        assert first == same and (rows, first) in (("40", same), ("42", "40"))
    assert {rows for _, rows, *_ in states} == {"40", "42"}
    assert [rows for _, rows, *_ in states] == sorted(rows for _, rows, *_ in states)
