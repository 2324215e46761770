"""Damages files, each with one bit that is another or cut short, and runs the command that reads it next.

    python -m benchmarks.chaos.damage [--seed 0] [--folder FOLDER] [--repeats 1]

========= =============================================================================================================
``named`` the command failed with one line that names the file or its folder
``equal`` it did not notice, and its end is that of an undisturbed run
``wrong`` all else: another end, a traceback, or an error that does not name the file
========= =============================================================================================================

The folder may be that of ``python -m benchmarks.chaos``, whose undisturbed runs are used. A table and one line of JSON
come at the end.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.kinds import KINDS
from benchmarks.chaos.state import state
from benchmarks.chaos.trial import Ended, Lab, last_line

FORMS = ("bit", "cut")
READ = (  # the kind of work that reads a file, and the file
    ("compact", "db/database.json"),
    ("compact", "db/removed.npz"),
    ("compact", "db/embeddings/00000.npy"),
    ("compact", "db/metadata/00000.parquet"),
    ("merge", "db/embeddings/00000.npy"),
    ("merge", "db/metadata/00000.parquet"),
    ("tables", "db/index/index.faiss"),
    ("tables", "db/index/index.json"),
    ("tables", "db/embeddings/00000.npy"),
    ("RDM", "db/neighbours/train/neighbours.npy"),
    ("RDM", "db/neighbours/train/neighbours.json"),
    ("export", "run/checkpoints/last.ckpt"),
    ("export", "run/config.yaml"),
    ("sampling", "model/model.safetensors"),
    ("sampling", "model/config.yaml"),
    ("sampling", "db/database.json"),
    ("sampling", "db/embeddings/00000.npy"),
)


@dataclass(frozen=True)
class Damage:
    """What became of a damaged file.

    Attributes:
        kind: the kind of work that read it.
        file: its path.
        form: ``bit`` or ``cut``.
        place: the number of the byte.
        result: ``named``, ``equal`` or ``wrong``.
        said: the last line of the command.
    """

    kind: str
    file: str
    form: str
    place: int
    result: str
    said: str


def damage(file: Path, form: str, chance: random.Random) -> int:
    """Changes one bit of a file or cuts it short; returns at which byte."""
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    if form == "bit":
        content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(content if form == "bit" else content[:place]))
    return place


def result_of(ended: Ended, file: Path, different: set[str]) -> str:
    """Returns what the command made of a damaged file, given its path in the work and the files that are different."""
    if ended.code:
        line = last_line(ended.said)
        names = (file.name, str(file.parent))
        return "named" if line.startswith("error: ") and any(name in line for name in names) else "wrong"
    return "wrong" if different - {str(file)} else "equal"


def run(lab: Lab, kind: str, file: str, form: str, seed: str) -> Damage:
    """Returns what became of one damaged file."""
    lab.reference(lab.kinds[kind])
    saved = lab.place(lab.kinds[kind])
    lab.restore(saved / "before")
    place = damage(lab.at.work / file, form, random.Random(f"{seed} {kind} {file} {form}"))  # noqa: S311
    ended = lab.command(lab.kinds[kind].command(lab.at))
    different = set[str]()
    if not ended.code:
        got, expected = state(lab.at.work), state(saved / "after")
        different = {name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name)}
    return Damage(kind, file, form, place, result_of(ended, Path(file), different), last_line(ended.said))


def main() -> None:
    """Damages the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the places; default: 0")
    parser.add_argument("--folder", type=Path, default=Path("logs/chaos"), help="default: logs/chaos")
    parser.add_argument(
        "--repeats", type=int, default=1, help="how often each file is damaged in each form; default: 1"
    )
    args = parser.parse_args()
    lab, sums = Lab(args.folder, KINDS), Counter[str]()
    lab.make_world()
    print("| file | read by | a bit | cut |\n|---|---|---|---|")
    for kind, file in READ:
        cells = []
        for form in FORMS:
            found = [run(lab, kind, file, form, f"{args.seed} {each}") for each in range(args.repeats)]
            sums.update(each.result for each in found)
            cells.append(
                ", ".join(each.result + (f" ({each.said[-300:]})" * (each.result == "wrong")) for each in found)
            )
        print(f"| `{file}` | {kind} | " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({"benchmark": "chaos.damage", "seed": args.seed, "repeats": args.repeats, **sums}))


if __name__ == "__main__":
    main()
