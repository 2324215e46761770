"""One trial: a process is killed at a random moment, goes on, and its end is compared with an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.kinds import KINDS, Command, Kind, Places
from benchmarks.chaos.state import broken_files, files_of, state, units
from benchmarks.chaos.world import write_world
from ldm.files import write_json

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
LONGEST = 300  # seconds that a command may take
TRIES = 3  # commands that go on, one after the other, before a trial fails
CARD = "reference.json"
HEALTHY = "checkpoints/healthy."


@dataclass
class Trial:
    """What became of a piece of work that was killed.

    Attributes:
        kind: name of the kind.
        number: of the trial among those of its kind.
        seed: of the benchmark.
        how: ``clock`` if the signal came at a time, ``file`` if it came before a change of a file.
        moment: that time in seconds after the start, or the number of that change.
        signal: name of the signal.
        met: whether the process was running.
        broken: files with final names that were not whole after the signal.
        refused: what commands said that were to go on and failed.
        lost: units of work that are missing at the end.
        left: files at the end that an undisturbed run does not leave.
        different: files that are missing at the end, or have other bytes than those of an undisturbed run.
        seconds: from the start of the command that goes on to its first change of a file; -1 if it changed none.
    """

    kind: str
    number: int
    seed: int
    how: str = "clock"
    moment: float = 0.0
    signal: str = "KILL"
    met: bool = False
    broken: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    seconds: float = -1.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, broken, left, refused or different."""
        return not any((self.broken, self.refused, self.lost, self.left, self.different))


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, below 0 for a signal.
        seconds: how long it took.
        said: its output and errors.
        changes: the changes of files that it made; -1 if it was killed.
        first: seconds from its start to the first of them; -1 if there was none.
    """

    code: int
    seconds: float
    said: str
    changes: int
    first: float


class Lab:
    """Runs trials in a folder, which keeps the undisturbed runs for the next call.

    Args:
        folder: the folder.
        kinds: the kinds of work by name.
    """

    def __init__(self, folder: Path, kinds: dict[str, Kind] | None = None) -> None:
        self.folder, self.kinds = folder.absolute(), KINDS if kinds is None else kinds
        self.at = Places(self.folder / "world", self.folder / "work")

    def make_world(self) -> None:
        """Writes what the work needs, unless it is there."""
        if not (self.folder / "world.json").is_file():
            shutil.rmtree(self.at.world, ignore_errors=True)
            write_world(*(self.at.world, self.at.work))
            write_json(self.folder / "world.json", {"files": len(list(files_of(self.at.world)))})

    def reference(self, kind: Kind) -> dict[str, Any]:
        """Returns how long an undisturbed run of a kind takes and how many files it changes; runs it if need be.

        Raises:
            RuntimeError: it failed; the message has the end of what it said.
        """
        place = self.place(kind)
        if not (place / CARD).is_file():
            shutil.rmtree(place, ignore_errors=True)
            self._empty_work()
            if kind.after is not None:
                self.reference(self.kinds[kind.after])
                self.restore(self.place(self.kinds[kind.after]) / "after")
            if kind.first is not None:
                self._must(kind.first(self.at))
            shutil.copytree(self.at.work, place / "before", symlinks=True)
            ended = self._must(kind.command(self.at))
            shutil.copytree(self.at.work, place / "after", symlinks=True)
            self._note(place, ended)
        return dict(json.loads((place / CARD).read_text()))

    def drawn(self, kind: Kind, number: int, seed: int, name: str = "KILL") -> Trial:
        """Returns a trial that was not run yet. Its moment is a share of the undisturbed run, drawn by the seed.

        Even numbers send the signal at a time between the first change of a file and the end of the undisturbed run,
        odd ones before a change of a file.
        """
        figures, chance = self.reference(kind), random.Random(f"{seed} {kind.name} {number}")  # noqa: S311
        how = "clock" if number % 2 == 0 or not figures["changes"] else "file"
        trial = Trial(kind.name, number, seed, how=how, signal=name)
        begin = figures["first"] if figures["changes"] else 0.0
        trial.moment = round(chance.uniform(begin, figures["seconds"]), 3)
        if how == "file":
            trial.moment = chance.randint(1, figures["changes"])
        return trial

    def run(self, trial: Trial) -> Trial:
        """Returns a trial after it was run."""
        kind = self.kinds[trial.kind]
        self.reference(kind)
        place, name = self.place(kind), trial.signal
        self.restore(place / "before")
        ended = self.command(kind.command(self.at), trial)
        trial.met = ended.code < 0 or ended.code == 128 + signal.Signals[f"SIG{name}"]
        if not trial.met and ended.code:
            trial.refused.append(last_line(ended.said))
        if not trial.met and not ended.code and ended.seconds < self.reference(kind)["seconds"]:
            self._note(place, ended)  # the machine is less busy now
        if trial.met and "Traceback" in ended.said:
            trial.refused.append(f"after SIG{name}: {ended.said[-300:]}")
        trial.broken = broken_files(self.at.work)
        for _ in range(TRIES if trial.met else 0):
            ended = self.command((kind.again or kind.command)(self.at))
            if ended.code == 0:
                trial.seconds = round(ended.first, 2)
                break
            trial.refused.append(last_line(ended.said))
        self._compare(trial, place / "after")
        return trial

    def _compare(self, trial: Trial, after: Path) -> None:
        """Notes in what the end of a trial is not that of an undisturbed run."""
        got, expected = state(self.at.work), state(after)
        if trial.signal != "KILL":  # a run that is told to stop writes a checkpoint more, which it may keep as healthy
            got, expected = ({k: v for k, v in each.items() if HEALTHY not in k} for each in (got, expected))
        trial.left = sorted(got.keys() - expected.keys())
        trial.different = sorted(name for name in expected if got.get(name) != expected[name])
        trial.lost = sorted((units(after) - units(self.at.work)).elements())

    def _note(self, place: Path, ended: Ended) -> None:
        write_json(place / CARD, {"seconds": ended.seconds, "changes": ended.changes, "first": ended.first})

    def place(self, kind: Kind) -> Path:
        """Returns the folder of what is kept of a kind: ``before`` and ``after`` its undisturbed run."""
        return self.folder / kind.name.replace(" ", "_")

    def _empty_work(self) -> None:
        shutil.rmtree(self.at.work, ignore_errors=True)
        self.at.work.mkdir(parents=True)

    def restore(self, saved: Path) -> None:
        """Makes the folder of the work a copy of a saved one."""
        shutil.rmtree(self.at.work, ignore_errors=True)
        shutil.copytree(saved, self.at.work, symlinks=True)

    def _must(self, command: Command) -> Ended:
        ended = self.command(command)
        if ended.code:
            raise RuntimeError(f"{' '.join(command[1:4])} failed without a disturbance: {ended.said[-600:]}")
        return ended

    def command(self, command: Sequence[str], trial: Trial | None = None) -> Ended:
        """Runs a command, which gets the signal of a trial at its moment."""
        report, output = self.folder / "report.json", self.folder / "output.txt"
        report.unlink(missing_ok=True)
        paths = [str(HOOK), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        environment |= {"CHAOS_BELOW": f"{self.at.work}{os.sep}", "CHAOS_REPORT": str(report)}
        number = None if trial is None else signal.Signals[f"SIG{trial.signal}"]
        if trial is not None and number is not None and trial.how == "file":
            environment |= {"CHAOS_AT": str(int(trial.moment)), "CHAOS_SIGNAL": str(int(number))}
        begin = time.monotonic()
        with output.open("w") as said:
            process = subprocess.Popen(  # noqa: S603 (the project's own commands)
                command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if trial is not None and number is not None and trial.how == "clock":
                    try:
                        process.wait(trial.moment)
                    except subprocess.TimeoutExpired:
                        send(process, number)
                code = process.wait(LONGEST)
            finally:
                send(process, signal.SIGKILL)
        known = json.loads(report.read_text()) if report.is_file() else {"changes": -1, "first": -1.0}
        return Ended(code, time.monotonic() - begin, output.read_text(errors="replace"), **known)


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to a process and its children, if any of them is left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
    if number == signal.SIGKILL:
        process.wait()


def last_line(said: str) -> str:
    """Returns the last line of an output; all of it if it is a traceback."""
    return said[-800:] if "Traceback" in said else (said.strip().splitlines() or [""])[-1]


def as_line(trial: Trial) -> str:
    """Returns a trial as a line of JSON."""
    return json.dumps(asdict(trial)) + "\n"
