"""What the scripts take on their command lines, and what they refuse before anything is loaded."""

import argparse
from pathlib import Path

import pytest

from rdm.cli.sampling import add_sampling_options, own_options, sampling_options


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    add_sampling_options(p, outdir="outputs/x", n_samples=4)
    return p


def test_numbers_that_may_be_given(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    words = ["--scale", "-3", "--ddim_eta", "1", "--seed", "7", "--outdir", str(tmp_path / "a" / "b")]
    args = parser.parse_args(words)
    assert (args.scale, args.ddim_eta, args.seed) == (-3.0, 1.0, 7)
    assert args.outdir == str(tmp_path / "a" / "b") and not (tmp_path / "a").exists()
    assert parser.parse_args([]).outdir == "outputs/x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "nan"], "--scale/--guidance_scale: expected a finite number, got 'nan'"),
        (["--scale", "inf"], "expected a finite number, got 'inf'"),
        (["--ddim_eta", "2"], "--ddim_eta/--eta: expected a number from 0 to 1, got '2'"),
        (["--ddim_eta", "nan"], "expected a finite number, got 'nan'"),
        (["--seed=-5"], "--seed: expected a whole number from 0 to 4294967295, got '-5'"),
        (["--steps", "0"], "expected a whole number of at least 1, got '0'"),
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


def test_options_of_the_other_kind_are_left_out_or_refused(parser: argparse.ArgumentParser) -> None:
    given = sampling_options(parser.parse_args([]))
    diffusion, codes = own_options(given, autoregressive=False), own_options(given, autoregressive=True)
    both = {"scale", "best_of", "batch_size", "tile", "compile", "precision", "height", "width", "copies"}
    assert diffusion.keys() & codes.keys() == both
    assert codes["temperature"] == 1.0 and diffusion["steps"] is None and {**diffusion, **codes} == given
    with pytest.raises(ValueError, match="got top_k=5, which is for an autoregressive model, but this is a diffusion"):
        own_options(sampling_options(parser.parse_args(["--top_k", "5"])), autoregressive=False)
    with pytest.raises(ValueError, match="got sampler=plms, which is for a diffusion model, but this is an autoreg"):
        own_options(sampling_options(parser.parse_args(["--sampler", "plms"])), autoregressive=True)


def test_a_kind_of_model_is_asked_for_by_name(parser: argparse.ArgumentParser) -> None:
    assert parser.parse_args(["--model", "rarm"]).ckpt == "rarm" and parser.parse_args([]).ckpt is None
