"""A page in the browser: ask for images, see their neighbours and switch them, edit, and inspect the database.

It is served to this machine alone unless --host says otherwise. docs/web.md describes it.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import fields

from ldm.command_line import ArgumentParser, HelpFormatter, add_trust_option, command_line, positive
from rdm.sampling.signing import read_key
from rdm.web.hosts import check_host, login
from rdm.web.limits import Limits

LIMITS = [each.name for each in fields(Limits)]
GENERATOR = {
    "generator": "a pipeline of diffusers in the place of a model, over the first --database",
    "adapter": "its IP-Adapter",
    "image_encoder": "the adapter's image encoder, if it is not beside it",
}


def parse() -> argparse.Namespace:
    """Returns the command line."""
    p = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    usual = "a checkpoint or run folder; if not given, the newest diffusion run, else the shipped model"
    p.add_argument("--ckpt", help=usual)
    p.add_argument("--config", help="the config of the model; if not given, the one beside the checkpoint")
    further = "a further database that neighbours may come from, made with the same CLIP; may be given several times"
    p.add_argument("--database", action="append", default=[], metavar="NAME=FOLDER", help=further)
    for name, what in GENERATOR.items():
        p.add_argument(f"--{name}", help=what)
    p.add_argument("--host", default="127.0.0.1", help="the address to listen at; the default is this machine alone")
    p.add_argument("--port", type=positive, help="the port; if not given, the first free one from 7860 on")
    asked = "what the page asks for; required with a host on the network"
    p.add_argument("--auth", metavar="USER:PASSWORD", help=asked)
    p.add_argument("--open", action="store_true", help="serve a host on the network to everyone, without --auth")
    p.add_argument("--allow-changes", action="store_true", help="let users add rows to databases and remove them")
    p.add_argument("--key", metavar="KEYFILE", help="sign what is drawn, and check signatures; see verify.py")
    add_trust_option(p)
    limits = p.add_argument_group("limits of one request")
    for each in fields(Limits):
        limits.add_argument(
            f"--most_{each.name}", dest=each.name, type=positive, default=each.default, metavar="N",
            help=f"most {each.metadata['what']}",
        )  # fmt: skip
    return p.parse_args()


def databases(words: list[str]) -> dict[str, str]:
    """Returns the folders of databases by their names.

    Raises:
        ValueError: a word has another form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not name or not folder or name in found:
            raise ValueError(f"got --database {word}, expected NAME=FOLDER with a name that is not used yet")
        found[name] = folder
    return found


@command_line
def main() -> None:
    """Serves the page until a signal ends it."""
    args = parse()
    auth = None if args.auth is None else login(args.auth)
    key = None if args.key is None else read_key(args.key)
    check_host(args.host, auth, args.open)
    limits, folders = Limits(**{name: getattr(args, name) for name in LIMITS}), databases(args.database)
    gc.disable()  # which would take a good part of the time of all imports
    from rdm.web.server import serving, wait
    from rdm.web.studio import Studio

    gc.freeze()  # what was imported stays
    gc.enable()
    opening = (args.ckpt, folders, args.config, limits, args.allow_changes, {n: getattr(args, n) for n in GENERATOR})
    with Studio.open(*opening, key) as studio, serving(studio, args.host, args.port, auth) as address:
        print(f"the page is at {address}; Ctrl-C ends it", flush=True)
        wait()


if __name__ == "__main__":
    main()
