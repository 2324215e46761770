"""The options of ``scripts/export_checkpoint.py`` for whole exports and for the hub, and what they do."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.command_line import finite

LIMIT = 200.0


def add_whole_options(p: argparse.ArgumentParser) -> None:
    """Adds what an export holds beside the weights, and where it is pushed."""
    p.add_argument(
        "--whole",
        action="store_true",
        help="with what sampling needs: with --to safetensors embedder, database, pictures and model card; with --to "
        "diffusers a pipeline that finds neighbours by itself",
    )
    p.add_argument(
        "--part-limit",
        type=finite,
        default=LIMIT,
        metavar="MB",
        help="with --whole --to safetensors: leave out a part that is larger; the card names it",
    )
    p.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="with --whole --to diffusers: only rows with this value, such as licence=CC0-1.0",
    )
    p.add_argument(
        "--licence", default="other", help="with --whole: licence of the weights by the hub's identifier, such as mit"
    )
    p.add_argument(
        "--push",
        metavar="hf:OWNER/NAME",
        help="upload the written folder to the Hugging Face hub; a new repository is private. Implies --whole",
    )


def check_whole_options(args: argparse.Namespace) -> None:
    """Checks the options against each other before anything is written, and lets ``--push`` imply ``--whole``.

    Raises:
        ValueError: an option has no effect with another, or the repository has another form.
    """
    if args.push is not None:
        from ldm.hub import repository

        repository(args.push)
        args.whole = True
    if args.whole and (args.to == "compvis" or args.source == "diffusers"):
        raise ValueError("--whole and --push write safetensors or diffusers of a run; leave out them or the other form")
    if args.only and (args.to != "diffusers" or not args.whole):
        raise ValueError("--only has an effect with --to diffusers --whole; add these, or leave it out")


def import_diffusers_folder(args: argparse.Namespace) -> Path:
    """Writes a folder that diffusers wrote in this project's format, and returns the path of the weights."""
    from ldm.checkpoint import write_weights
    from ldm.config import write_config
    from ldm.convert.diffusers import import_diffusers, scale_of_diffusers
    from ldm.run import copy_class_names

    config, state = import_diffusers(args.run)
    write_config(Path(args.output) / "config.yaml", config)
    copy_class_names(args.run, args.output)
    written = Path(args.output) / "model.safetensors"
    write_weights(written, state, metadata={"scale_factor": scale_of_diffusers(args.run)})
    return written


def convert(args: argparse.Namespace) -> Path:
    """Writes a run for CompVis' code or for diffusers, and returns the path of the result."""
    from ldm.run import copy_class_names, measured_latents, read_run, weights_of

    config, state = read_run(args.run, args.checkpoint, args.weights)
    copy_class_names(args.run, args.output)
    if args.to == "compvis":
        from rdm.convert.compvis import export_model

        return export_model(config["model"], state, args.output)
    if args.weights == "both":
        raise ValueError("--weights both: diffusers has one set of weights; ask for average or raw")
    if args.whole:
        from rdm.convert.pipeline import export_pipeline
        from rdm.loading import load

        file = str(args.checkpoint or weights_of(args.run))
        loaded = load(file, None, args.only, str(Path(args.run) / "config.yaml"))
        return export_pipeline(config, state, loaded, args.output)
    from ldm.convert.diffusers import export_diffusers

    return export_diffusers(config, state, args.output, measured_latents(args.run).get("scale_factor", 1.0))


def complete(args: argparse.Namespace) -> None:
    """Puts the parts and the card into a written folder."""
    from rdm.convert.card import write_card
    from rdm.convert.whole import Parts, complete_export

    parts = complete_export(args.output, args.part_limit) if args.to == "safetensors" else Parts()
    write_card(args.run, args.output, parts, args.licence)
