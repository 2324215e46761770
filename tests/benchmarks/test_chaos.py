"""The benchmark of kills: what it counts, and that it goes on itself after it was stopped."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import TRIALS, figures, finished, planned, run, table
from benchmarks.chaos.damage import damage, result_of
from benchmarks.chaos.kinds import KINDS, Kind
from benchmarks.chaos.state import broken_files, state, units
from benchmarks.chaos.trial import Ended, Lab, Trial

# Each writes six JSON files and six steps of a run, and goes on where it stopped.
WHOLE = """
import os, sys
from pathlib import Path
work = Path(sys.argv[1])
for step in range(6):
    if not (work / f"{step}.json").exists():
        (work / ".new").write_text('{"step": %d}' % step)
        (work / ".new").replace(work / f"{step}.json")
lines = "".join(f"{step},0.5\\n" for step in range(6))
(work / ".new").write_text("step,train/loss\\n" + lines)
(work / ".new").replace(work / "metrics.csv")
"""
# Writes in place, and never looks at what is there again.
HALF = """
import os, signal, sys
from pathlib import Path
work = Path(sys.argv[1])
for step in range(6):
    if not (work / f"{step}.json").exists():
        with (work / f"{step}.json").open("w") as file:
            file.write('{"step": ')
            file.flush()
            if not (work / "mark").exists() and step == 3:
                (work / "mark").mkdir()
            file.write('%d}' % step)
(work / "mark").mkdir(exist_ok=True)
"""
# Notes a step as done before its line is there, and leaves the note.
LOSES = """
import sys
from pathlib import Path
work = Path(sys.argv[1])
done = work / "done"
for step in range(int(done.read_text()) if done.exists() else 0, 6):
    done.write_text(str(step + 1))
    with (work / "metrics.csv").open("a") as file:
        file.write(("" if step else "step,train/loss\\n") + f"{step},0.5\\n")
"""


def kind(name: str, code: str) -> Kind:
    return Kind(name, lambda at: [sys.executable, "-c", code, str(at.work)])


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, {name: kind(name, code) for name, code in (("a", WHOLE), ("b", HALF), ("c", LOSES))})


def killed_at(lab: Lab, name: str, change: int) -> Trial:
    return lab.run(Trial(name, 1, 0, how="file", moment=change))


def test_work_that_goes_on_well_is_counted_as_good(lab: Lab) -> None:
    assert lab.reference(lab.kinds["a"])["changes"] == 14
    for change in (1, 2, 7, 13, 14):
        trial = killed_at(lab, "a", change)
        assert trial.met and trial.how == "file" and trial.moment == change
        assert trial.is_good and trial.seconds >= 0, trial
    assert len(units(lab.at.work)) == 6


def test_a_half_written_file_is_counted_as_broken_and_as_different(lab: Lab) -> None:
    trial = killed_at(lab, "b", 5)  # before the mark, when the fourth file has its first half
    assert [each.partition(":")[0] for each in trial.broken] == ["3.json"]
    assert trial.different == ["3.json"] and not trial.is_good and trial.lost == []


def test_work_that_is_lost_is_counted(lab: Lab) -> None:
    trial = killed_at(lab, "c", 8)  # the note says that step 3 is done, and its line is missing
    assert trial.lost == ["step 3"] and trial.different == ["./metrics"] and trial.broken == []
    sums = figures([trial, killed_at(lab, "a", 2)])
    assert (sums["trials"], sums["met"], sums["lost"], sums["different"], sums["equal"]) == (2, 2, 1, 1, 1)


def test_work_that_fails_again_and_files_that_stay_are_counted(tmp_path: Path) -> None:
    code = WHOLE.replace("for step", "if list(work.glob('*.json')): raise SystemExit('error: not empty')\nfor step", 1)
    lab = Lab(tmp_path, {"d": kind("d", code)})
    trial = killed_at(lab, "d", 4)  # one file is there, and a second under its temporary name
    assert trial.refused == ["error: not empty"] * 3 and trial.left == [".new"]
    assert "1.json" in trial.different and trial.lost == [f"step {step}" for step in range(6)]


def test_a_benchmark_that_was_stopped_goes_on(lab: Lab) -> None:
    first = run(lab, 3, 0, ["a", "c"], ["KILL"])
    lines = (lab.folder / TRIALS).read_text()
    assert [(each.kind, each.number) for each in first] == [("a", 0), ("c", 0), ("a", 1)]
    with (lab.folder / TRIALS).open("a") as file:
        file.write('{"kind": "c", "num')  # it is killed while it writes a line
    again = run(Lab(lab.folder, lab.kinds), 4, 0, ["a", "c"], ["KILL"])
    assert again[:3] == first and (again[3].kind, again[3].number) == ("c", 1)
    assert (lab.folder / TRIALS).read_text().startswith(lines)
    assert finished(lab.folder) == again
    with pytest.raises(ValueError, match="trials of seed 0, got 1; name another --folder"):
        run(lab, 4, 1, ["a", "c"], ["KILL"])


def test_the_same_seed_kills_at_the_same_moments(lab: Lab) -> None:
    a, b, other = (lab.drawn(lab.kinds["a"], 2, seed) for seed in (3, 3, 4))
    assert a.moment == b.moment != other.moment and a.how == "clock"
    assert {lab.drawn(lab.kinds["a"], number, 0).moment for number in range(1, 400, 2)} == set(range(1, 15))


def test_kinds_and_signals_take_turns() -> None:
    plan = planned(8, ["x", "y"], ["KILL", "TERM"])
    assert plan[:4] == [("x", 0, "KILL"), ("y", 0, "KILL"), ("x", 1, "KILL"), ("y", 1, "KILL")]
    assert plan[4:] == [("x", 2, "TERM"), ("y", 2, "TERM"), ("x", 3, "TERM"), ("y", 3, "TERM")]


def test_the_table_has_a_line_for_each_kind_and_the_sums() -> None:
    good = Trial("merge", 0, 0, met=True, seconds=2.0)
    bad = Trial("add", 0, 0, met=True, lost=["row db 1", "row db 2"], different=["a"], seconds=4.0)
    lines = table([good, bad]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| add", "| merge", "| all"]
    assert lines[2] == "| add | 1 | 1 | 2 | 0 | 0 | 0 | 0 of 1 | 4.0 |"
    assert lines[4] == "| all | 2 | 2 | 2 | 0 | 0 | 0 | 1 of 2 | 3.0 |"


def test_what_is_not_whole_is_found_and_times_make_no_difference(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"rows": 3, "build_seconds": 1.0}))
    before = state(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"rows": 3, "build_seconds": 2.0}))
    assert state(tmp_path) == before and broken_files(tmp_path) == []
    (tmp_path / "index.json").write_text(json.dumps({"rows": 4, "build_seconds": 2.0}))
    assert state(tmp_path) != before
    for name, content in (("a.json", b"{"), ("a.npy", b"\x93NUMPY"), ("a.png", b"\x89PNG"), ("a.csv", b"a,b\n1")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f".{name}.tmp").write_bytes(content)
    assert [each.partition(":")[0] for each in broken_files(tmp_path)] == ["a.csv", "a.json", "a.npy", "a.png"]


def test_a_build_of_a_database_that_is_killed_goes_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.make_world()
    trial = lab.run(lab.drawn(KINDS["database"], 1, 0))
    assert trial.met and trial.is_good and trial.seconds > 0, trial
    assert len(units(lab.at.work)) == 24


def test_a_damaged_file_is_changed_and_what_a_command_made_of_it_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for form, left in (("bit", 9), ("cut", 8)):
        file.write_bytes(bytes(9))
        place = damage(file, form, random.Random(1))  # noqa: S311
        content = file.read_bytes()
        assert len(content) == (left if form == "bit" else place) <= left
        assert sum(byte.bit_count() for byte in content) == (form == "bit")
    at = Path("db/database.json")
    for code, said, different, expected in (
        (2, "error: db/database.json is not JSON; restore it", set(), "named"),
        (2, "error: something is wrong", set(), "wrong"),
        (1, "Traceback (most recent call last):\nOSError: db/database.json", set(), "wrong"),
        (0, "done", {"db/database.json"}, "equal"),
        (0, "done", {"db/embeddings/00000.npy"}, "wrong"),
    ):
        assert result_of(Ended(code, 1.0, said, 1, 1.0), at, different) == expected
