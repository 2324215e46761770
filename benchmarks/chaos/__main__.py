"""Kills the project's commands at random moments, lets them go on, and compares their ends with undisturbed ones.

    python -m benchmarks.chaos [--kills 100] [--seed 0] [--folder FOLDER] [--only KIND ...] [--signals KILL TERM INT]

Each finished trial is a line of ``trials.jsonl`` in the folder, so the same command goes on where it was stopped. A
table and one line of JSON with the sums come at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.chaos.kinds import EVERY, KINDS
from benchmarks.chaos.trial import Lab, Trial, as_line

TRIALS = "trials.jsonl"
COUNTED = ("broken", "refused", "lost", "left", "different")
HEAD = ("kind", "trials", "met", "lost", "broken", "left", "refused", "equal", "seconds until it went on")


def finished(folder: Path) -> list[Trial]:
    """Returns the trials in a folder; a line that was being written when the benchmark was killed is taken away."""
    file = folder / TRIALS
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [Trial(**json.loads(line)) for line in whole.splitlines()]


def planned(kills: int, names: list[str], signals: list[str]) -> list[tuple[str, int, str]]:
    """Returns the kind, the number in its kind and the signal of each trial; kinds and signals take turns."""
    of_kind = [(names[each % len(names)], each // len(names)) for each in range(kills)]
    return [(name, number, signals[number // 2 % len(signals)]) for name, number in of_kind]


def figures(trials: Iterable[Trial]) -> dict[str, Any]:
    """Returns the sums over trials."""
    trials = list(trials)
    found: dict[str, Any] = {"trials": len(trials), "met": sum(each.met for each in trials)}
    found |= {name: sum(len(getattr(each, name)) for each in trials) for name in COUNTED}
    took = [each.seconds for each in trials if each.seconds >= 0]
    equal = sum(not each.different and not each.left for each in trials)
    return {**found, "equal": equal, "seconds": round(statistics.median(took), 1) if took else None}


def table(trials: list[Trial]) -> str:
    """Returns the table of the trials, a line for each kind."""
    names = [each.name for each in EVERY if any(trial.kind == each.name for trial in trials)]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name in [*names, "all"]:
        sums = figures(each for each in trials if name in ("all", each.kind))
        shown = (*(sums[key] for key in HEAD[1:7]), f"{sums['equal']} of {sums['trials']}", sums["seconds"])
        lines.append(f"| {name} | " + " | ".join("" if each is None else str(each) for each in shown) + " |")
    return "\n".join(lines)


def in_words(trial: Trial) -> str:
    """Returns what was done in a trial and what was found, in one line."""
    faults = {each: getattr(trial, each) for each in COUNTED if getattr(trial, each)}
    missed = "" if trial.met else " (missed)"
    return f"{trial.kind} {trial.how} {trial.moment} {trial.signal}{missed}: {faults or 'equal'}"


def run(lab: Lab, kills: int, seed: int, names: list[str], signals: list[str]) -> list[Trial]:
    """Returns the trials of a plan; those that are not in the folder yet are run.

    Raises:
        ValueError: the folder holds trials of another seed.
    """
    done = finished(lab.folder)
    if others := {trial.seed for trial in done} - {seed}:
        raise ValueError(f"{lab.folder} holds trials of seed {others.pop()}, got {seed}; name another --folder")
    known = {(trial.kind, trial.number, trial.signal): trial for trial in done}
    found = []
    for number, key in enumerate(planned(kills, names, signals)):
        if key not in known:
            name, place, which = key
            known[key] = lab.run(lab.drawn(lab.kinds[name], place, seed, which))
            with (lab.folder / TRIALS).open("a", encoding="utf-8") as file:
                file.write(as_line(known[key]))
            print(f"{number + 1}/{kills} {in_words(known[key])}", flush=True)
        found.append(known[key])
    return found


def main() -> None:
    """Runs the trials of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="number of trials; default: 100")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments; default: 0")
    parser.add_argument("--folder", type=Path, default=Path("logs/chaos"), help="default: logs/chaos")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND", help="kinds")
    parser.add_argument("--signals", nargs="+", choices=("KILL", "TERM", "INT"), default=["KILL"], help="in turns")
    args = parser.parse_args()
    lab = Lab(args.folder)
    lab.make_world()
    trials = run(lab, args.kills, args.seed, args.only, args.signals)
    print(table(trials))
    print(json.dumps({"benchmark": "chaos", "seed": args.seed, "signals": args.signals, **figures(trials)}))


if __name__ == "__main__":
    main()
