"""Feeds bad inputs to the project and prints a table of how they ended.

    python -m benchmarks.fuzz [--n 1000] [--seed 0] [--folder FOLDER] [--only KIND ...]

Each input is made from its kind, its number and the seed, and is tried in a process of its own that is watched.
Finished inputs are lines of ``outcomes-SEED.jsonl`` in the folder, so that the same command goes on after a kill.

=============== =======================================================================================================
``clear``       refused: exit code not 0, or a ValueError or OSError; one line names what was got and what helps
``accepted``    the input was used; nothing says that it must be refused
``unclear``     refused, but not in one line, or without the file or value, or without a remedy
``let through`` used, although it must be refused
``traceback``   another exception, or a crash
``executed``    something was started, connected to, or run
``hung``        more than 10 s of processor time, or 20 s by the clock
``memory``      more than 2 GB, or no memory left
``outside``     a file outside of its folder was written, made or removed
=============== =======================================================================================================
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.fuzz import kinds  # noqa: E402
from benchmarks.fuzz.attempt import ROOT, Make  # noqa: E402
from benchmarks.fuzz.trial import OUTCOMES, SHARED, Outcome, line_of, tried  # noqa: E402

LOADED = (  # so that no attempt waits for them
    *("torch", "faiss", "pytorch_lightning", "pyarrow.parquet", "PIL.Image", "kornia", "open_clip", "gradio"),
    *("ldm.callbacks", "ldm.guards", "ldm.loggers", "ldm.saving", "ldm.data.images", "ldm.data.parquet"),
    *("ldm.models.autoencoder", "ldm.convert.training", "rdm.convert.released", "rdm.evaluate.images"),
    *("rdm.cli.database", "rdm.sampling.edit", "rdm.sampling.record", "rdm.sampling.adapt", "rdm.data"),
    *("rdm.sampling.before_after", "rdm.convert.whole", "rdm.models.clip", "rdm.retrieval.neighbours.build"),
)


def finished(file: Path) -> list[Outcome]:
    """Returns the outcomes in a file; the last line is left out if it was cut."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("\n")]


def run(makes: Mapping[str, Make], n: int, seed: int, folder: Path) -> list[Outcome]:
    """Returns the outcomes of ``n`` attempts of some kinds, in equal parts; finished ones are not repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"outcomes-{seed}.jsonl"
    done = {(each.kind, each.number): each for each in finished(file)}
    file.write_text("".join(map(line_of, done.values())), encoding="utf-8")
    wanted = [(kind, number) for kind in makes for number in range(-(-n // len(makes)))]
    with file.open("a", encoding="utf-8") as stream:
        for kind, number in wanted:
            if (kind, number) in done:
                continue
            outcome = tried(kind, number, makes[kind], seed, folder)
            done[kind, number] = outcome
            stream.write(line_of(outcome))
            stream.flush()
            if outcome.outcome not in ("clear", "accepted"):
                last = (outcome.message.strip().splitlines() or [""])[-1][:200]
                print(f"{kind} {number}: {outcome.outcome}: {outcome.what[:120]!r}: {last!r}", file=sys.stderr)
    return [done[each] for each in wanted]


def table(outcomes: Iterable[Outcome]) -> str:
    """Returns the numbers of outcomes by kind, in Markdown."""
    counts = Counter((each.kind, each.outcome) for each in outcomes)
    names = list(dict.fromkeys(kind for kind, _ in counts))
    rows = [(kind, [counts[kind, outcome] for outcome in OUTCOMES]) for kind in names]
    rows.append(("all", [sum(column) for column in zip(*(row for _, row in rows), strict=True)] or [0] * len(OUTCOMES)))
    lines = [f"| kind | number | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    return "\n".join(lines + [f"| {kind} | {sum(row)} | {' | '.join(map(str, row))} |" for kind, row in rows])


def main(words: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="number of inputs, in equal parts of the kinds")
    parser.add_argument("--seed", type=int, default=0, help="seed of all inputs")
    parser.add_argument("--folder", type=Path, default=Path("outputs/fuzz"), help="folder of finished inputs")
    parser.add_argument("--only", nargs="+", choices=list(kinds.KINDS), default=list(kinds.KINDS), metavar="KIND")
    args = parser.parse_args(words)
    sys.path.insert(0, str(ROOT))
    folder = args.folder.resolve()
    os.environ[SHARED] = str(folder / "gradio")
    for name in LOADED:
        importlib.import_module(name)
    kinds.prepare(folder)
    print(table(run({kind: kinds.KINDS[kind] for kind in args.only}, args.n, args.seed, folder)))


if __name__ == "__main__":
    main()
