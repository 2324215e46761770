"""What every command line shares: options of all scripts, logging, and errors in one line."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from ldm.util import trust


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust PACKAGE``, which takes effect as it is read."""
    parser.add_argument(
        "--trust", action=_Trust, default=[], metavar="PACKAGE", help="a package that configs may name targets of"
    )


class _Trust(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        del option
        try:
            trust(values)
        except ValueError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def seed_number(text: str) -> int:
    """Returns a seed of the command line: a whole number that every generator takes, 0 to 2**32 - 1."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, got '{text}'")
    return int(text)


def configure_logging() -> None:
    """Sends our records of level INFO, and other libraries' warnings, to stderr; called once, by a script."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in ("ldm", "rdm", "main"):
        logging.getLogger(name).setLevel(logging.INFO)
    # Every retry of a download is a warning in one, every instruction set the processor lacks in the other.
    for name in ("huggingface_hub", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _in_words(error: Exception) -> str:
    """Returns what an error says; for one of the system, the path first, and what to do."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}; name another path, or change what is there"
    return str(error)


def command_line(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates a script's ``main``: bad input ends in one line and exit code 2, never in a traceback."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> None:
        configure_logging()
        try:
            main(*args, **kwargs)
        except (ValueError, OSError) as error:
            if os.environ.get("LDM_TRACEBACK"):
                raise
            message = " ".join(_in_words(error).split())
            sys.stderr.write(f"error: {message}\n")
            sys.exit(2)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)

    return run
