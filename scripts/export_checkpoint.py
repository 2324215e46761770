"""Exports a run as safetensors, for CompVis' code or for diffusers, or imports a folder that diffusers wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, add_trust_option, command_line


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("run", help="run folder or exported folder; with --from diffusers, the folder that diffusers wrote")
    p.add_argument(
        "--to", choices=("safetensors", "compvis", "diffusers"), default="safetensors", help="format of the output"
    )
    p.add_argument("--from", dest="source", choices=("run", "diffusers"), default="run", help="format of the input")
    p.add_argument("--checkpoint", help="checkpoint to export; the run's last one if not given")
    p.add_argument("--output", required=True, help="folder to write, e.g. models/rdm/mine")
    p.add_argument(
        "--weights",
        choices=("average", "raw", "both"),
        default="average",
        help="average: export the EMA weights; raw: the weights of the last step; both: both, under their names",
    )
    p.add_argument(
        "--float32",
        action="store_true",
        help="with --to safetensors: keep float32, which is otherwise rounded to float16",
    )
    add_trust_option(p)
    return p.parse_args()


@command_line
def main() -> None:
    """The command ``python scripts/export_checkpoint.py``."""
    args = parse()
    if Path(args.output).resolve() == Path(args.run).resolve():
        raise ValueError(f"--output: got {args.output}, the folder that is read; give another, or its config is lost")
    if args.source == "diffusers":
        if args.to != "safetensors" or args.checkpoint or args.weights != "average":
            raise ValueError(
                "--from diffusers writes safetensors and config.yaml: leave out --to, --checkpoint and --weights"
            )
        from ldm.checkpoint import write_weights
        from ldm.config import write_config
        from ldm.convert.diffusers import import_diffusers, scale_of_diffusers
        from ldm.run import copy_class_names

        config, state = import_diffusers(args.run)
        write_config(Path(args.output) / "config.yaml", config)
        copy_class_names(args.run, args.output)
        written = Path(args.output) / "model.safetensors"
        write_weights(written, state, metadata={"scale_factor": scale_of_diffusers(args.run)})
    elif args.to == "safetensors":
        from ldm.run import export_run

        options = {"half": not args.float32, "weights": args.weights}
        written = export_run(args.run, args.output, checkpoint=args.checkpoint, **options)
    else:
        written = convert(args)
    size = sum(file.stat().st_size for file in Path(args.output).rglob("*") if file.is_file())
    print(f"{written}: {size / 1e6:.1f} MB in {args.output}")


def convert(args: argparse.Namespace) -> Path:
    """Writes a run for CompVis' code or for diffusers, and returns the path of the result."""
    from ldm.run import copy_class_names, measured_latents, read_run

    config, state = read_run(args.run, args.checkpoint, args.weights)
    copy_class_names(args.run, args.output)
    if args.to == "compvis":
        from rdm.convert.compvis import export_model

        return export_model(config["model"], state, args.output)
    if args.weights == "both":
        raise ValueError("--weights both: diffusers has one set of weights; ask for average or raw")
    from ldm.convert.diffusers import export_diffusers

    return export_diffusers(config, state, args.output, measured_latents(args.run).get("scale_factor", 1.0))


if __name__ == "__main__":
    main()
