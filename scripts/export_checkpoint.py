"""Exports a run as safetensors, for CompVis' code or for diffusers, or imports a folder that diffusers wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.command_line import ArgumentParser, HelpFormatter, add_trust_option, command_line
from rdm.cli.exporting import add_whole_options, check_whole_options, complete, convert, import_diffusers_folder


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
    add_whole_options(p)
    add_trust_option(p)
    return p.parse_args()


@command_line
def main() -> None:
    """The command ``python scripts/export_checkpoint.py``."""
    args = parse()
    if Path(args.output).resolve() == Path(args.run).resolve():
        raise ValueError(f"--output: got {args.output}, the folder that is read; give another, or its config is lost")
    check_whole_options(args)
    if args.source == "diffusers":
        if args.to != "safetensors" or args.checkpoint or args.weights != "average":
            raise ValueError(
                "--from diffusers writes safetensors and config.yaml: leave out --to, --checkpoint and --weights"
            )
        written = import_diffusers_folder(args)
    elif args.to == "safetensors":
        from ldm.run import export_run

        options = {"half": not args.float32, "weights": args.weights}
        written = export_run(args.run, args.output, checkpoint=args.checkpoint, **options)
    else:
        written = convert(args)
    if args.whole:
        complete(args)
    size = sum(file.stat().st_size for file in Path(args.output).rglob("*") if file.is_file())
    print(f"{written}: {size / 1e6:.1f} MB in {args.output}")
    if args.push:
        from ldm.hub import push

        print(f"pushed to {push(args.output, args.push)}")


if __name__ == "__main__":
    main()
