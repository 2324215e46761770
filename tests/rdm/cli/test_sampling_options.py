"""The options of the sampling scripts: which values they accept, and which they refuse before a model is loaded."""

import argparse
import inspect
import runpy
import sys
from pathlib import Path

import pytest
from parsers import options_of

from rdm.cli.sampling import add_sampling_options
from rdm.sampling import ways
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.settings import DEFAULTS, OPTIONS, Settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    add_sampling_options(p, outdir="outputs/x", n_samples=4)
    return p


def test_numbers_that_may_be_given(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    words = ["--scale", "-3", "--eta", "1", "--seed", "7", "--outdir", str(tmp_path / "a" / "b")]
    args = parser.parse_args(words)
    assert (args.scale, args.eta, args.seed) == (-3.0, 1.0, 7)
    assert args.outdir == str(tmp_path / "a" / "b") and not (tmp_path / "a").exists()
    assert parser.parse_args([]).outdir == "outputs/x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "nan"], "--scale/--guidance_scale: got scale=nan, expected a finite number"),
        (["--scale", "inf"], "got scale=inf, expected a finite number"),
        (["--ddim_eta", "2"], "--eta/--ddim_eta: got eta=2.0, expected a number from 0 to 1"),
        (["--ddim_eta", "nan"], "got eta=nan, expected a number from 0 to 1"),
        (["--seed=-5"], "--seed: got seed=-5, expected a whole number from 0 to 4294967295"),
        (["--steps", "0"], "got steps=0, expected a whole number of at least 1"),
    ],
)
def test_numbers_that_make_no_image_are_refused(
    parser: argparse.ArgumentParser, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused_at_once(
    parser: argparse.ArgumentParser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--outdir", str(wrong)])
        assert f"--outdir: cannot write to {tmp_path / 'file'}, expected a folder" in capsys.readouterr().err


def test_the_command_line_has_the_defaults_of_the_settings(parser: argparse.ArgumentParser) -> None:
    """Every setting is an option, with the same default on the command line and in Python."""
    given = vars(parser.parse_args([]))
    assert {name: given[name] for name in DEFAULTS} == DEFAULTS
    assert Settings.of_command_line(given) == Settings()
    helped = parser.format_help()
    for name, known in OPTIONS.items():
        assert all(flag in helped for flag in known.flags or (f"--{name}",)) and known.what


@pytest.mark.parametrize("script", ["txt2img", "class2img", "sample", "edit"])
def test_the_ways_have_the_defaults_of_the_scripts(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a script and the Python function that it calls share an option, both have the same default."""
    words = {"class2img": ["--class", "a"], "edit": ["--image", "a.png"]}.get(script, [])
    monkeypatch.setattr(sys, "argv", [script, *words])
    given = vars(runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["parse"]()) | {"k": None, "weighted": False}
    functions = {"txt2img": ways.texts, "class2img": ways.classes, "sample": ways.popular, "edit": edit}
    for function in (functions[script], Pipeline.__call__ if script == "txt2img" else Pipeline.edit):
        if script in ("class2img", "sample") and function is Pipeline.edit:
            continue
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty and name in given
        }
        assert defaults == {name: given[name] for name in defaults} and len(defaults) >= 3


def test_a_script_has_no_option_that_it_refuses() -> None:
    refused = {"--H", "--W", "--temperature", "--top_k", "--top_p"}
    assert not options_of("scripts/edit.py") & refused and refused < options_of("scripts/txt2img.py")
    assert "--text_scale" in options_of("scripts/txt2img.py") - options_of("scripts/class2img.py")


def test_words_become_settings(parser: argparse.ArgumentParser) -> None:
    words = ["--interval", "200", "800", "--H", "32", "--ddim_eta", "0.5", "--tile", "2GB"]
    words += ["--compile", "--plms", "--reject-copies", "--only", "a=b"]
    settings = Settings.of_command_line(vars(parser.parse_args(words)))
    assert settings == Settings(
        interval=(200, 800), height=32, eta=0.5, tile="2GB", compile=True, sampler="plms", reject_copies=5
    )
    assert Settings.of_command_line(vars(parser.parse_args(["--no_copy_check"]))).copy_threshold is None
    with pytest.raises(ValueError, match="reject_copies=2 without a copy check"):
        Settings.of_command_line(vars(parser.parse_args(["--no_copy_check", "--reject-copies", "2"])))


WRONG = {
    "steps": ("0", "1.5", "many"),
    "scale": ("nan", "-inf", "much"),
    "rescale": ("1.5", "-1", "nan"),
    "sampler": ("dimm",),
    "spacing": ("even",),
    "precision": ("16",),
    "temperature": ("-1", "nan"),
    "top_p": ("0", "1.1"),
    "top_k": ("0",),
    "height": ("0", "-16"),
    "tile": ("0", "2 apples"),
    "best_of": ("0",),
    "reject_copies": ("-1",),
    "copy_threshold": ("nan",),
    "batch_size": ("0",),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_python_and_the_command_line_refuse_in_the_same_sentence(
    parser: argparse.ArgumentParser, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = next(iter(OPTIONS[name].flags), f"--{name}")
    with pytest.raises(SystemExit):
        parser.parse_args([f"{flag}={text}"])
    told = capsys.readouterr().err.strip().splitlines()[-1]
    try:
        value = OPTIONS[name].value.read(text)
    except ValueError:
        value = text
    with pytest.raises(ValueError, match=f"^got {name}=") as refused:
        Settings.of(**{name: value})
    assert told.endswith(f": {refused.value}")


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--weaker_scale", "3"], "weaker_scale=3.0 without weaker"),
        (["--interval", "800", "200"], r"interval=\(800, 200\), expected a first and a last time"),
        (["--interval", "a", "200"], r"interval=\('a', 200\), expected a first and a last time"),
        (["--scale", "1", "--rescale", "0.5"], "rescale=0.5 without guidance"),
        (["--scale", "1", "--interval", "2", "9"], r"interval=\(2, 9\) without guidance"),
        (["--temperature", "0", "--top_k", "5"], "top_k=5 without a temperature above 0"),
        (["--reference_scale", "0", "--reference_noise", "0.5"], "reference_noise=0.5 without"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    parser: argparse.ArgumentParser, words: list[str], fact: str
) -> None:
    with pytest.raises(ValueError, match=fact):
        Settings.of_command_line(vars(parser.parse_args(words)))


def test_a_kind_of_model_is_asked_for_by_name(parser: argparse.ArgumentParser) -> None:
    assert parser.parse_args(["--model", "rarm"]).ckpt == "rarm" and parser.parse_args([]).ckpt is None
