# ruff: noqa: S605, S607, S311, ARG001, ARG005, BLE001 (planted inputs do what they must not)
"""The benchmark of bad inputs: what it counts, what it stops, and that an interrupted run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz import trial
from benchmarks.fuzz.__main__ import finished, run, table
from benchmarks.fuzz.attempt import MARK, Attempt, command, mutated, replaced
from benchmarks.fuzz.trial import Outcome, tried


def fail(error: Exception) -> None:
    raise error


PLANTED: list[tuple[str, Callable[[], object], str]] = [
    ("a system call", lambda: os.system("true"), "executed"),
    ("a program", lambda: subprocess.run(["true"], check=True), "executed"),
    ("its mark", lambda: Path(MARK).touch(), "executed"),
    ("a caught system call", lambda: [None for _ in [0] if not _caught()], "executed"),
    ("a file outside", lambda: Path("../../outside").write_text("x"), "outside"),
    ("a removed file outside", lambda: Path("../../kept").unlink(), "outside"),
    ("a file inside", lambda: Path("inside").write_text("x"), "accepted"),
    ("a traceback", lambda: fail(KeyError("x")), "traceback"),
    ("a crash", lambda: os.kill(os.getpid(), signal.SIGTERM), "traceback"),
    ("one line", lambda: fail(ValueError("got 'x', expected y")), "clear"),
    ("two lines", lambda: fail(ValueError("got 'x'\nexpected y")), "unclear"),
    ("no remedy", lambda: fail(ValueError("got 'x'")), "unclear"),
    ("no name", lambda: fail(ValueError("got it, expected y")), "unclear"),
    ("control characters", lambda: fail(ValueError("got 'x\x1b[31m', expected y")), "unclear"),
    ("no memory", lambda: bytearray(2**40), "memory"),
]


def _caught() -> bool:
    try:
        return bool(os.system("true"))
    except Exception:
        return False


@pytest.mark.parametrize(("what", "call", "outcome"), PLANTED, ids=[what for what, *_ in PLANTED])
def test_a_planted_input_is_counted_as_what_it_does(
    tmp_path: Path, what: str, call: Callable[[], object], outcome: str
) -> None:
    (tmp_path / "kept").touch()
    got = tried("planted", 3, lambda rng, number: Attempt(what, call, ("'x",)), 0, tmp_path)
    assert (got.outcome, got.what, got.number) == (outcome, what, 3), got.message
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_input_that_must_be_refused_is_let_through(tmp_path: Path) -> None:
    got = tried("planted", 0, lambda rng, number: Attempt("fine", lambda: None, refused=True), 0, tmp_path)
    assert got.outcome == "let through"


@pytest.mark.parametrize("call", [lambda: time.sleep(60), lambda: [None for _ in iter(int, 1)]], ids=["waits", "works"])
def test_an_input_that_never_ends_is_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1)
    assert tried("planted", 0, lambda rng, number: Attempt("long", call), 0, tmp_path).outcome == "hung"


def test_an_input_that_cannot_be_made_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="(?s)attempt 0 of planted .*ZeroDivisionError"):
        tried("planted", 0, lambda rng, number: 1 // 0, 0, tmp_path)


def test_a_command_line_is_judged_by_its_last_line(tmp_path: Path) -> None:
    def make(rng: random.Random, number: int) -> Attempt:
        words = [["none"], [], ["none\x1b[2J"], ["x", "--trust", "a b"], ["--help"]][number]
        return command("a checkpoint", "scripts/check_checkpoint.py", *words)

    got = [tried("planted", number, make, 0, tmp_path) for number in range(5)]
    assert [each.outcome for each in got] == ["clear"] * 4 + ["accepted"], got
    assert got[0].message.startswith("no checkpoint at none")


def test_an_interrupted_run_goes_on_with_the_same_inputs(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def make(rng: random.Random, number: int) -> Attempt:
        with made.open("a") as file:
            file.write(f"{number}\n")
        return Attempt(f"{number} {rng.random()}", lambda: None)

    whole = run({"a": make, "b": make}, 6, 1, tmp_path / "run")
    file = tmp_path / "run" / "outcomes-1.jsonl"
    assert finished(file) == whole and made.read_text().split() == ["0", "1", "2"] * 2
    kept = file.read_text().splitlines(keepends=True)
    file.write_text("".join(kept[:3]) + kept[3][:20])  # killed while it wrote a line
    assert finished(file) == whole[:3]
    again = run({"a": make, "b": make}, 6, 1, tmp_path / "run")
    assert made.read_text().split()[6:] == ["0", "1", "2"]  # those of b
    assert [each.what for each in again] == [each.what for each in whole] and finished(file) == again
    assert [each.what for each in run({"a": make}, 3, 2, tmp_path / "run")] != [each.what for each in whole[:3]]


def test_the_table_counts_by_kind() -> None:
    outcomes = [Outcome("a", 0, "", "clear", "", 0, 0), Outcome("a", 1, "", "hung", "", 0, 0)]
    lines = table([*outcomes, Outcome("b", 0, "", "clear", "", 0, 0)]).splitlines()
    assert lines[2:] == [
        "| a | 2 | 1 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 |",
        "| b | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |",
        "| all | 3 | 2 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 |",
    ]


def test_changes_are_made_by_the_generator_alone() -> None:
    data, content = bytes(range(200)), {"a": {"b": [1, 2]}, "c": 3}
    assert mutated(data, random.Random(1)) == mutated(data, random.Random(1))
    assert len({mutated(data, random.Random(seed))[0] for seed in range(30)}) > 25
    changed, what, key = replaced({"c": 3}, random.Random(1))
    assert what.startswith("c") and key == "c" and changed != {"c": 3} or "added" in what
    assert len({str(replaced({"a": {"b": [1, 2]}, **content}, random.Random(seed))[0]) for seed in range(30)}) > 10
