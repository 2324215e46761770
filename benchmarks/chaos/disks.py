"""Disks that are full or turn read-only while the project's commands work (Linux, as root).

    python -m benchmarks.chaos.disks [--trials 14] [--seed 0] [--folder FOLDER] [--only KIND ...]

The folder of the work is a file system in memory. In half of the trials, its space ends at a random share of what an
undisturbed run writes. In the others, it turns read-only when such a share is written, for all files that are opened
from then on. Then the disk has space and may be written again, and the command goes on.

=========== ===========================================================================================================
``met``     commands that failed because of the disk
``clear``   those that said so in one line
``broken``  half-written files with final names, while the disk could not be written
``refused`` commands that did not go on
``equal``   ends with the files of an undisturbed run, see :mod:`benchmarks.chaos`
=========== ===========================================================================================================
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

from benchmarks.chaos.kinds import KINDS, Kind
from benchmarks.chaos.state import broken_files, files_of
from benchmarks.chaos.trial import TRIES, Lab, Trial, last_line

FORMS = ("full", "read-only")
SAID = ("no space left on device", "read-only file system")
LARGE = 1 << 30  # bytes of a disk that suffices
PAGE = 4096
POLL = 0.005
HEAD = ("kind", "trials", "met", "clear", "lost", "broken", "left", "refused", "equal")


def pages(folder: Path) -> int:
    """Returns how many bytes the files of a folder take in memory."""
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files_of(folder))


class DiskLab(Lab):
    """Runs trials in a folder, of which the work has a file system of its own."""

    def _empty_work(self) -> None:
        self.at.work.mkdir(parents=True, exist_ok=True)
        self.end()
        self._mount("mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs")

    def restore(self, saved: Path) -> None:
        """Makes the folder of the work a copy of a saved one."""
        self._empty_work()
        shutil.copytree(saved, self.at.work, symlinks=True, dirs_exist_ok=True)

    def end(self) -> None:
        """Takes the file system away, if there is one."""
        while self.at.work.is_mount():
            self._mount("umount", "--lazy")

    def _mount(self, *words: str) -> None:
        done = subprocess.run([*words, str(self.at.work)], capture_output=True, text=True)  # noqa: S603 (of util-linux)
        if done.returncode:
            raise OSError(f"{' '.join(words)}: {done.stderr.strip()}; run this as root on Linux")

    def spoil(self, kind: Kind, number: int, seed: int) -> tuple[Trial, bool]:
        """Returns a trial after it was run, and whether the command said in one line what was wrong."""
        self.reference(kind)
        chance = random.Random(f"{seed} {kind.name} {number}")  # noqa: S311
        place, share = self.place(kind), chance.uniform(0.0, 1.0)
        trial = Trial(kind.name, number, seed, how=FORMS[number % 2], moment=round(share, 3), signal="")
        self.restore(place / "before")
        written = int(share * max(pages(place / "after") - pages(place / "before"), 0))
        ended = threading.Event()
        if trial.how == "full":
            self._mount("mount", "-o", f"remount,size={self._used() + PAGE + written}")
            watch = None
        else:
            watch = threading.Thread(target=self._turn, args=(self._used() + written, ended))
            watch.start()
        first = self.command(kind.command(self.at))
        ended.set()
        if watch is not None:
            watch.join()
            self._mount("umount", "--lazy")
        trial.met = first.code != 0
        clear = (
            trial.met and "Traceback" not in first.said and any(word in last_line(first.said).lower() for word in SAID)
        )
        if trial.met and not clear:
            trial.refused.append(f"said: {first.said[-300:]}")
        trial.broken = broken_files(self.at.work)
        self._mount("mount", "-o", f"remount,size={LARGE}")
        for _ in range(TRIES if trial.met else 0):
            again = self.command((kind.again or kind.command)(self.at))
            if again.code == 0:
                break
            trial.refused.append(last_line(again.said))
        self._compare(trial, place / "after")
        return trial, clear

    def _used(self) -> int:
        return shutil.disk_usage(self.at.work).used

    def _turn(self, used: int, ended: threading.Event) -> None:
        """Covers the disk by a view of it that cannot be written, when more bytes are used or as the command ends."""
        while self._used() <= used and not ended.is_set():
            ended.wait(POLL)
        self._mount("mount", "--bind", str(self.at.work))
        self._mount("mount", "-o", "remount,ro,bind")


def table(found: list[tuple[Trial, bool]]) -> str:
    """Returns the table of trials, a line for each kind."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name in [*dict.fromkeys(trial.kind for trial, _ in found), "all"]:
        some = [(trial, clear) for trial, clear in found if name in ("all", trial.kind)]
        numbers: list[Any] = [len(some), sum(trial.met for trial, _ in some), sum(clear for _, clear in some)]
        numbers += [
            sum(len(getattr(trial, part)) for trial, _ in some) for part in ("lost", "broken", "left", "refused")
        ]
        equal = sum(not trial.different and not trial.left for trial, _ in some)
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {equal} of {len(some)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the trials and prints their table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trials", type=int, default=2 * (len(KINDS) - 1), help="number of trials; kinds take turns")
    p.add_argument("--seed", type=int, default=0, help="seed of all moments")
    p.add_argument("--folder", type=Path, default=Path("logs/chaos-disks"), help="default: %(default)s")
    known = [name for name in KINDS if name != "page"]  # which keeps its errors in its log
    p.add_argument("--only", nargs="+", choices=known, default=known, metavar="KIND", help="kinds of work")
    args = p.parse_args()
    lab = DiskLab(args.folder)
    lab.make_world()
    found = []
    try:
        for each in range(args.trials):
            trial, clear = lab.spoil(KINDS[args.only[each % len(args.only)]], each // len(args.only), args.seed)
            found.append((trial, clear))
            faults = {part: getattr(trial, part) for part in ("broken", "refused", "lost", "left", "different")}
            faults = {name: value for name, value in faults.items() if value}
            state = ("clear" if clear else "unclear") if trial.met else "missed"
            print(f"{trial.kind} {trial.how} {trial.moment}: {state} {faults or 'equal'}", flush=True)
    finally:
        lab.end()
    print(table(found))
    print(json.dumps({"benchmark": "chaos.disks", "seed": args.seed, "trials": len(found)}))


if __name__ == "__main__":
    main()
