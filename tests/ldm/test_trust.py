"""Packages that a user trusts beside ours."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

import main
from ldm import util
from ldm.command_line import add_trust_option
from ldm.util import instantiate_from_config
from rdm.cli.sampling import add_sampling_options


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    util._trusted.clear()


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_trust_option(parser)
    return parser.parse_args(words)


def test_a_refusal_names_the_switch_that_lifts_it() -> None:
    config = {"target": "fractions.Fraction", "params": {"numerator": 3, "denominator": 6}}
    with pytest.raises(ValueError, match="'fractions.Fraction'.*--trust fractions$"):
        instantiate_from_config(config)
    assert parse("--trust", "fractions").trust == ["fractions"]
    assert str(instantiate_from_config(config)) == "1/2"
    with pytest.raises(ValueError, match="not trusted"):
        instantiate_from_config({"target": "os.getcwd"})


def test_of_what_the_user_trusts_a_target_may_be_a_function() -> None:
    config = {"target": "ldm.util.nearest", "params": {"word": "on", "known": ["one"]}}
    with pytest.raises(ValueError, match="'ldm.util.nearest'.*function"):
        instantiate_from_config(config)
    parse("--trust", "ldm.util")
    assert instantiate_from_config(config) == "; did you mean 'one'?"


def test_several_packages_and_none() -> None:
    assert parse().trust == []
    assert parse("--trust", "fractions", "--trust", "email.message").trust == ["fractions", "email.message"]
    assert type(instantiate_from_config({"target": "email.message.Message"})).__name__ == "Message"
    with pytest.raises(ValueError, match="not trusted"):
        instantiate_from_config({"target": "email.policy.EmailPolicy"})


@pytest.mark.parametrize("word", ["", "a/b", "../evil", "a..b", "os;x"])
def test_what_is_no_package_is_an_error_of_the_command_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--trust", word)
    assert stopped.value.code == 2
    assert f"--trust: got '{word}', expected the name of a package" in capsys.readouterr().err


def test_training_takes_the_switch() -> None:
    config = {"target": "fractions.Fraction"}
    main.parse(["--base", "c.yaml"])
    with pytest.raises(ValueError, match="not trusted"):
        instantiate_from_config(config)
    options = main.parse(["--base", "c.yaml", "--trust", "fractions", "-t", "model.params.k=8"])
    assert options.trust == ["fractions"] and options.overrides == ["model.params.k=8"]
    assert instantiate_from_config(config) == 0


def test_sampling_takes_the_switch() -> None:
    parser = argparse.ArgumentParser()
    add_sampling_options(parser, outdir="o", n_samples=1)
    parser.parse_args(["--trust", "fractions"])
    assert instantiate_from_config({"target": "fractions.Fraction"}) == 0
