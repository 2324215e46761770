"""The options of the scripts."""

from website.commands import actions_of, parser_of, subparsers_of

__all__ = ["options_of", "parser_of"]


def options_of(script: str) -> set[str]:
    """All options of a script and of its commands, but for ``--help``: the long name where there is one."""
    parser = parser_of(script)
    actions = [each for every in (parser, *subparsers_of(parser).values()) for each in actions_of(every)]
    names = [action.option_strings for action in actions if action.option_strings]
    return {next((name for name in each if name.startswith("--")), each[0]) for each in names}
