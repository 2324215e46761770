"""Tables of every command and its options, made from the argument parsers of the scripts."""

from __future__ import annotations

import argparse
import functools
import logging
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from rdm.console import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]


class _Caught(BaseException):
    """Carries a parser out of a script, which catches errors but not this."""


def scripts() -> list[str]:
    """Returns the paths of all command lines: ``main.py`` and the scripts."""
    return ["main.py", *sorted(f"scripts/{file.name}" for file in (ROOT / "scripts").glob("*.py"))]


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """Returns the parser of ``main.py`` or of a script in ``scripts/``; the script ends before it does anything.

    Raises:
        ValueError: the script has ended without parsing a command line.
    """

    def catch(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Caught(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", catch),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", catch),
        mock.patch.object(logging, "basicConfig"),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except _Caught as caught:
            found: argparse.ArgumentParser = caught.args[0]
            found.prog = f"python {script}"
            return found
    raise ValueError(f"{script} parses no command line")


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parsers of a script's commands by name; none if the script has no commands."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: found for group in groups for name, found in group.choices.items()}


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Returns what a parser takes, without ``--help`` and without its commands."""
    other = (argparse._HelpAction, argparse._SubParsersAction)
    return [action for action in parser._actions if not isinstance(action, other)]


def commands_page() -> str:
    """Returns the sections of all scripts, in Markdown."""
    return "\n\n".join("\n\n".join(_section(script)) for script in scripts())


def _section(script: str) -> Iterator[str]:
    parser = parser_of(script)
    yield f"## {script.removeprefix('scripts/')}"
    yield _sentence(parser.description)
    for installed in [name for name, each in SCRIPTS.items() if each == script]:
        yield f"In an [installed package](../install.md), this is the command `{installed}`."
    if commands := subparsers_of(parser):
        for name, command in commands.items():
            yield f"### {script.removeprefix('scripts/')} {name}"
            yield _sentence(command.description)
            yield _table(f"python {script} {name}", command)
    else:
        yield _table(f"python {script}", parser)


def _sentence(description: str | None) -> str:
    return " ".join((description or "").split("\n\n")[0].split())


def _table(call: str, parser: argparse.ArgumentParser) -> str:
    required = [name for name, needed in map(_named, actions_of(parser)) if needed]
    lines = [f"`{' '.join([call, *required])}`", "", "| option | what it does | default |", "|---|---|---|"]
    return "\n".join(lines + [_row(action, parser) for action in actions_of(parser)])


def _named(action: argparse.Action) -> tuple[str, bool]:
    """Returns how an argument is written, and whether a command needs it."""
    value = _value(action)
    if not action.option_strings:
        return value, action.nargs not in ("*", "?")
    return f"{action.option_strings[-1]} {value}".strip(), action.required


def _value(action: argparse.Action) -> str:
    """Returns the words that follow an option, as ``--help`` writes them."""
    formatter = argparse.HelpFormatter("")
    default = formatter._get_default_metavar_for_positional(action)
    if action.option_strings:
        default = formatter._get_default_metavar_for_optional(action)
    return "" if action.nargs == 0 else formatter._format_args(action, default)


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    value = _value(action)
    names = [f"`{name}`" for name in action.option_strings]
    names = [*names[:-1], f"`{action.option_strings[-1]} {value}`".replace(" `", "`")] if names else [f"`{value}`"]
    known = {**vars(action), "prog": parser.prog}
    says_something = action.default not in (None, False, "", []) and action.default is not argparse.SUPPRESS
    default = f"`{action.default}`" if says_something else "required" if action.required else ""
    return f"| {cell(', '.join(names))} | {cell((action.help or '') % known)} | {cell(default)} |"


def cell(text: str) -> str:
    """Returns Markdown as it can stand in a cell of a table; outside of code, ``|`` and ``<`` are kept from meaning."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else re.sub(r"<(?!br>)", "&lt;", part).replace("|", r"\|") for part in parts
    )
