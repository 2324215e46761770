"""Measures images and models. Each command writes the figures and all that is needed to repeat them to results.json."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ldm.command_line import ArgumentParser, command_line
from rdm.cli.evaluation import add_images, add_memorisation, add_reconstruction, add_repeat, add_samples
from rdm.sampling.settings import Settings


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_images(commands).set_defaults(run=run_images)
    add_samples(commands).set_defaults(run=run_images)
    add_repeat(commands).set_defaults(run=run_repeat)
    add_reconstruction(commands).set_defaults(run=run_reconstruction)
    add_memorisation(commands).set_defaults(run=run_memorisation)
    return p.parse_args()


def run_images(args: argparse.Namespace) -> None:
    """Writes the report and prints its figures."""
    from rdm.evaluate.images import evaluate_images

    given = {name: value for name, value in vars(args).items() if name not in ("run", "trust")}
    for features, figures in evaluate_images(given)["figures"].items():
        print(f"features {features}")
        show(figures)
    print(f"{args.outdir}/results.json")


def run_repeat(args: argparse.Namespace) -> None:
    """Prints each figure of the report before and after the repetition.

    Raises:
        ValueError: some figures differ.
    """
    from rdm.evaluate.repeat import repeat

    repeated = repeat(args.results)["repeated"]
    for name, figure in repeated.items():
        print(f"{name:60s}{figure['before']:.6g}  {figure['after']:.6g}  {'equal' if figure['equal'] else 'DIFFERS'}")
    if differing := [name for name, figure in repeated.items() if not figure["equal"]]:
        raise ValueError(f"{len(differing)} of {len(repeated)} figures differ: {', '.join(differing)}")
    print(f"all {len(repeated)} figures are equal")


def run_reconstruction(args: argparse.Namespace) -> None:
    """Writes the report and prints its figures."""
    from ldm.models.first_stage import load_first_stage
    from rdm.evaluate import reconstruction

    given = {name: value for name, value in vars(args).items() if name not in ("run", "command", "trust")}
    show(reconstruction(load_first_stage(args.model, args.config), given)["figures"])
    print(f"{args.outdir}/results.json")


def run_memorisation(args: argparse.Namespace) -> None:
    """Writes the report and prints its summary."""
    from rdm.evaluate.memorisation import memorisation, summary
    from rdm.loading import load

    given = {name: value for name, value in vars(args).items() if name not in ("run", "command", "trust")}
    loaded = load(args.checkpoint or args.ckpt, args.database, args.only, args.config, args.same_outline)
    report = memorisation(loaded, given, Settings.of_command_line(vars(args)))
    print("\n".join([*summary(report), f"{args.outdir}/results.json"]))


def show(figures: Mapping[str, Any]) -> None:
    """Prints each figure with its name."""
    for name, value in figures.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        print(f"{name:18s}{', '.join(f'{part} {number:.5g}'.strip() for part, number in parts)}")


@command_line
def main() -> None:
    """Runs the command that the command line names."""
    args = parse()
    args.run(args)


if __name__ == "__main__":
    main()
