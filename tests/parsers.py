"""The argument parsers of the scripts, without what the scripts do."""

import argparse
import functools
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Caught(Exception):  # noqa: N818 (it is no error)
    """A parser on its way out of a script."""


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser of ``main.py`` or of a script in ``scripts/``."""

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        scope = runpy.run_path(str(ROOT / script))
        scope["parse" if "parse" in scope else "parse_args"]()
    return caught.value.args[0]


def options_of(script: str) -> set[str]:
    """All options of a script and of its commands, but for ``--help``: the long name where there is one."""
    parsers, found = [parser_of(script)], set()
    for parser in parsers:  # grows
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.option_strings and action.dest != "help":
                found.add(next((o for o in action.option_strings if o.startswith("--")), action.option_strings[0]))
    return found
