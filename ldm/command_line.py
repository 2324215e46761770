"""Shared by all command lines: common options, logging, and errors of one line."""

from __future__ import annotations

import argparse
import functools
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ldm.files import FULL
from ldm.stopping import Stopped, handled, stop_at_once
from ldm.util import bytes_of, trust

LONGEST = 500  # characters of a word that an error repeats as a whole
LONGEST_LINE = 1500  # and of all of its words
NO_MEMORY = re.compile(r"MemoryError|allocate memory|out of memory", re.IGNORECASE)
CALLED: dict[str, str] = {}  # the console commands by the scripts that errors name, if the user called a command


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``--trust PACKAGE``, which takes effect while the command line is parsed."""
    parser.add_argument(
        "--trust",
        action=_Trust,
        default=[],
        metavar="PACKAGE",
        help="also accept classes of this package as targets in configs; may be repeated",
    )


class _Trust(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        del option
        try:
            trust(values)
        except ValueError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


class PlainParser(argparse.ArgumentParser):
    """A parser whose errors are one line that a terminal can show."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with the usage and an error of one line."""
        super().error(readable(message))


class ArgumentParser(PlainParser):
    """Parses a command line in which ``-`` and ``_`` are interchangeable within the names of options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Returns what the options say, and the words that are none of them."""
        words = sys.argv[1:] if args is None else args
        known = {name.replace("-", "_"): name for name in self._option_string_actions}

        def spelt(word: str) -> str:
            name, equals, value = word.partition("=")
            return known.get(name.replace("-", "_"), name) + equals + value if name.startswith("--") else word

        return super().parse_known_args([spelt(word) for word in words], namespace)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formats ``--help`` with the defaults of options where they say something: no None, False, empty text or list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_something = action.default not in (None, False, "", []) and action.default is not argparse.SUPPRESS
        return super()._get_help_string(action) if says_something else action.help


def seed_number(text: str) -> int:
    """Returns the seed that a word of the command line stands for: a whole number from 0 to 2**32 - 1."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, got '{text}'")
    return int(text)


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def finite(text: str) -> float:
    """Returns a number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got '{text}'")
    return value


def folder(text: str) -> str:
    """Returns the path of a folder that is there or can be made, so that nothing is sampled in vain."""
    path = Path(text)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {there}, expected a folder that can be made or written to")
    return text


def pixels_or_memory(text: str) -> int | str:
    """Returns a number of pixels as an int, or a size of memory such as ``2GB`` as it is."""
    try:
        return positive(text) if text.isdigit() else text if bytes_of(text) else 0
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a side in pixels or a size such as 2GB, got '{text}'") from error


def configure_logging() -> None:
    """Sends this project's log from level INFO, and other libraries' from WARNING, to stderr. Scripts call it once."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in ("ldm", "rdm", "main"):
        logging.getLogger(name).setLevel(logging.INFO)
    # The first warns of every retry of a download, the second of every instruction set that the processor lacks.
    for name in ("huggingface_hub", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.ERROR)


def readable(message: str) -> str:
    """Returns the one line of an error for a terminal.

    What a user gave may be in it: characters that control a terminal are written as escapes, and the middle of a word
    of more than 500 characters is left out, and that of a line of more than 1,500.
    """
    words = re.findall(r"[^ \t\r\n]+", message)
    parts = [word if len(word) <= LONGEST else f"{word[:150]}...{word[-30:]}" for word in words]
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(parts))
    return line if len(line) <= LONGEST_LINE else f"{line[:900]} ... {line[-500:]}"


def in_words(error: Exception) -> str:
    """Returns the text of an error; for an error of the operating system, the path, the reason and a remedy."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename:
        return (
            f"{error.filename}: {os.strerror(error.errno).lower()}; what was there before is unchanged; free some "
            "space, or name another path"
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}; name another path, or change what is there"
    return str(error)


def command_line(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates a script's ``main``: wrong input ends in one line on stderr and exit code 2 instead of a traceback.

    ``SIGTERM`` ends it by an exception, as Ctrl-C does, so that temporary files go. With the environment variable
    ``LDM_TRACEBACK`` set, the traceback of an error is shown.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> None:
        configure_logging()
        try:
            with handled({signal.SIGTERM: stop_at_once}):
                main(*args, **kwargs)
        except (ValueError, OSError) as error:
            if os.environ.get("LDM_TRACEBACK"):
                raise
            message = readable(in_words(error))
            for script, command in CALLED.items():
                message = message.replace(script, command)
            sys.stderr.write(f"error: {message}\n")
            sys.exit(2)
        except (RuntimeError, MemoryError) as error:  # torch has no class of its own for the memory of the CPU
            if os.environ.get("LDM_TRACEBACK") or not NO_MEMORY.search(f"{type(error).__name__}: {error}"):
                raise
            sys.stderr.write(
                f"error: {readable(f'no memory is left ({error})')}; make the model or the batch smaller\n"
            )
            sys.exit(2)
        except KeyboardInterrupt as stop:
            sys.stderr.write(f"{str(stop) or 'interrupted'}\n")
            sys.exit(130)
        except Stopped as stop:
            sys.stderr.write(f"{stop.text}\n")
            sys.exit(128 + stop.number)

    return run
