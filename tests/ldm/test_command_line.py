"""What every command line shares: spelling of options, their defaults in --help, and errors in one line."""

import argparse
import logging
from pathlib import Path

import pytest

from ldm.command_line import ArgumentParser, HelpFormatter, command_line, seed_number


def test_bad_input_ends_in_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])

    def fail(error: BaseException) -> None:
        raise error

    run = command_line(fail)
    for error, code, text in (
        (ValueError("k is 0,\n  expected 1"), 2, "error: k is 0, expected 1\n"),
        (FileNotFoundError("no file"), 2, "error: no file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(error)
        assert (caught.value.code, capsys.readouterr().err) == (code, text)
    with pytest.raises(TypeError, match="a bug"):  # not the user's fault: the traceback stays
        run(TypeError("a bug"))
    monkeypatch.setenv("LDM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="k is 0"):
        run(ValueError("k is 0"))


@pytest.mark.parametrize("text", ["-1", "1.5", "x", str(2**32), "99999999999999999999"])
def test_seeds_are_what_every_generator_takes(text: str) -> None:
    assert seed_number("4294967295") == 2**32 - 1
    with pytest.raises(argparse.ArgumentTypeError, match=f"4294967295.*'{text}'"):
        seed_number(text)


def test_errors_of_the_system_name_the_path_and_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    @command_line
    def main() -> None:
        (tmp_path / "file" / "folder").mkdir()

    with pytest.raises(SystemExit) as caught:
        main()
    message = f"error: {tmp_path / 'file' / 'folder'}: not a directory; name another path, or change what is there"
    assert caught.value.code == 2 and capsys.readouterr().err.strip() == message


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--copy_threshold", type=float, default=0.5, help="a number")
    parser.add_argument("--from-file", help="a file")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("remove").add_argument("--dry-run", action="store_true", help="count")
    return parser


def test_dashes_and_underscores_are_interchangeable(parser: ArgumentParser) -> None:
    for words in (["--copy-threshold", "2", "--from_file", "a_b-c"], ["--copy_threshold=2", "--from-file=a_b-c"]):
        args = parser.parse_args(words)
        assert (args.copy_threshold, args.from_file) == (2.0, "a_b-c")
    assert parser.parse_args(["remove", "--dry_run"]).dry_run
    with pytest.raises(SystemExit):
        parser.parse_args(["--from_folder", "a"])


def test_help_states_defaults_that_say_something(parser: ArgumentParser) -> None:
    assert "a number (default: 0.5)" in parser.format_help() and "None" not in parser.format_help()
