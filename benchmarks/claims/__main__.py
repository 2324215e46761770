"""Measures the claims of the paper on the emoji data: trains the models, measures their images, and writes a report.

    python -m benchmarks.claims --jobs 8 --batch 256

All results are kept in the folder, so the same command continues an interrupted run. A run counts as trained if its
model is in the subfolder ``models``, which may also come from another machine.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.claims import report
from benchmarks.claims.cases import QUESTIONS, all_cases
from benchmarks.claims.cost import measure_cost
from benchmarks.claims.measure import Bench, ceilings, measure_all
from benchmarks.claims.runs import all_runs, is_trained, prepare, train_all
from benchmarks.claims.spaces import set_up
from ldm.command_line import command_line
from ldm.files import write_json
from rdm.loading import load

LOG = logging.getLogger(__name__)


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, default=Path("outputs/claims"), help="output folder")
    runs, questions = ", ".join(all_runs()), ", ".join(QUESTIONS)
    p.add_argument(
        "--only",
        nargs="+",
        default=list(all_runs()),
        choices=list(all_runs()),
        metavar="RUN",
        help=f"models to train: {runs}; all if not given",
    )
    p.add_argument("--jobs", type=int, default=1, help="number of models that are trained at the same time")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="config setting for all training runs; may be repeated",
    )
    p.add_argument("--skip-training", action="store_true", help="measure only the models that are already trained")
    p.add_argument(
        "--questions",
        nargs="*",
        default=list(QUESTIONS),
        choices=QUESTIONS,
        metavar="QUESTION",
        help=f"questions to measure: {questions}; all if not given, none if the list is empty",
    )
    p.add_argument("--n", type=int, default=1024, help="number of images in each case")
    p.add_argument("--batch", type=int, default=64, help="number of images that are sampled at once; use 256 on a GPU")
    p.add_argument("--epochs", type=int, default=24, help="training epochs of the classifier")
    p.add_argument("--report", action="store_true", help="write only the report of the existing measurements")
    return p.parse_args()


def measure(args: argparse.Namespace, failed: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Measures the questions of the command line; returns the errors by case, and the runs that are not trained."""
    trained = [name for name in all_runs() if is_trained(name, args.folder)]
    if not trained:
        raise ValueError(f"no trained model in {args.folder / 'models'}; leave --skip-training out")
    prepare()
    shared = str(args.folder / "models" / trained[0])  # all runs have the same data and first stage
    setup = set_up(load(shared), args.folder / "cache", args.epochs)
    write_json(args.folder / "setup.json", {**setup.about, "classifier_accuracy": setup.accuracy})
    bench = Bench(args.folder, setup, args.n, args.batch)
    every = all_cases()
    cases = [case for question in args.questions for case in every.get(question, []) if case.run not in failed]
    if "concepts" in args.questions:
        cases += ceilings(shared)
    broken, missing = measure_all(bench, cases)
    if "cost" in args.questions:
        further, absent = measure_cost(bench)
        broken, missing = broken | further, sorted({*missing, *absent})
    return broken, missing


@command_line
def main() -> None:
    """Trains, measures and reports; the exit status is 1 if something failed."""
    args, failed = parse(), {}
    args.folder.mkdir(parents=True, exist_ok=True)
    broken: dict[str, str] = {}
    missing: list[str] = []
    if not args.report:
        if not args.skip_training:
            failed = train_all(args.only, args.folder, args.jobs, args.set)
        if args.questions:
            broken, missing = measure(args, failed)
    print(report.write(args.folder))
    for name, words in {**failed, **broken}.items():
        print(f"failed: {name}: {words}")
    if missing:
        print(f"these runs are not trained, so their cases were left out: {', '.join(missing)}")
    if failed or broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
