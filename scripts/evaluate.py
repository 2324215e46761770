"""Measures images and models. Each command writes the figures and all that is needed to repeat them to results.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from ldm.command_line import ArgumentParser, command_line
from rdm.cli import evaluation
from rdm.cli.evaluation import given
from rdm.sampling.settings import Settings


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    evaluation.add_images(commands).set_defaults(run=run_images)
    evaluation.add_samples(commands).set_defaults(run=run_images)
    evaluation.add_repeat(commands).set_defaults(run=run_repeat)
    evaluation.add_reconstruction(commands).set_defaults(run=run_reconstruction)
    evaluation.add_memorisation(commands).set_defaults(run=run_memorisation)
    evaluation.add_concepts(commands).set_defaults(run=run_concepts)
    return p.parse_args()


def run_images(args: argparse.Namespace) -> None:
    """Writes the report and prints its figures."""
    from rdm.evaluate.images import evaluate_images
    from rdm.evaluate.protocol import lines_of

    for features, figures in evaluate_images({"command": args.command, **given(args)})["figures"].items():
        print("\n".join([f"features {features}", *lines_of(figures)]))
    print(f"{args.outdir}/results.json")


def run_repeat(args: argparse.Namespace) -> None:
    """Prints each figure of the report before and after the repetition; some that differ are an error."""
    from rdm.evaluate.repeat import check_equal, repeat, summary

    repeated = repeat(args.results)["repeated"]
    print("\n".join(summary(repeated)))
    check_equal(repeated)


def run_reconstruction(args: argparse.Namespace) -> None:
    """Writes the report and prints its figures."""
    from ldm.models.first_stage import load_first_stage
    from rdm.evaluate import reconstruction
    from rdm.evaluate.protocol import lines_of

    figures = reconstruction(load_first_stage(args.model, args.config), given(args))["figures"]
    print("\n".join([*lines_of(figures), f"{args.outdir}/results.json"]))


def run_memorisation(args: argparse.Namespace) -> None:
    """Writes the report and prints its summary."""
    from rdm.evaluate.memorisation import memorisation, summary

    report_of_samples(args, memorisation, summary)


def run_concepts(args: argparse.Namespace) -> None:
    """Writes the report and prints its table."""
    from rdm.evaluate.concepts import concepts, summary
    from rdm.models.judge import load_judge

    report_of_samples(args, partial(concepts, load_judge(args.judge)), summary)


def report_of_samples(args: argparse.Namespace, measure: Callable[..., Any], summary: Callable[..., Any]) -> None:
    """Writes a report of a model and its samples, and prints its summary."""
    from rdm.loading import load

    loaded = load(args.checkpoint or args.ckpt, args.database, args.only, args.config, args.same_outline, args.agree)
    report = measure(loaded, given(args), Settings.of_command_line(vars(args)))
    print("\n".join([*summary(report), f"{args.outdir}/results.json"]))


@command_line
def main() -> None:
    """Runs the command that the command line names."""
    args = parse()
    args.run(args)


if __name__ == "__main__":
    main()
