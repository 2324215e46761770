"""A page in the browser: ask for images, see their neighbours, switch them, edit."""

from __future__ import annotations

import argparse

from ldm.command_line import ArgumentParser, HelpFormatter, add_trust_option, command_line


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    p.add_argument("--ckpt", help="a checkpoint or run folder; if not given, the newest run, else the shipped model")
    p.add_argument("--host", default="127.0.0.1", help="the address to listen at; the default is this machine alone")
    p.add_argument("--port", type=int, help="the port; if not given, the first free one from 7860 on")
    add_trust_option(p)
    return p.parse_args()


@command_line
def main() -> None:
    """Serves the page until a signal ends it."""
    args = parse()
    from rdm.web.server import serving, wait
    from rdm.web.studio import Studio

    with Studio.open(args.ckpt) as studio, serving(studio, args.host, args.port) as address:
        print(f"the page is at {address}", flush=True)
        wait()


if __name__ == "__main__":
    main()
