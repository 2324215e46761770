"""The command line that converts checkpoints: round trips of every format, and one-line errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pickled import Evil
from small_models import DDCONFIG, VQ, unet
from small_models import RDM as OURS
from small_models import trained_rdm as trained

from ldm.checkpoint import choose_weights, read_weights, write_checkpoint, write_weights
from ldm.config import write_config
from ldm.files import read_json, write_json
from ldm.run import measured_latents, read_run
from ldm.util import instantiate_from_config
from scripts import export_checkpoint

STAGE = instantiate_from_config(VQ).state_dict()


def script(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["export_checkpoint.py", *map(str, words)])
    export_checkpoint.main.__wrapped__()  # type: ignore[attr-defined]


def test_the_script_writes_every_form_and_reads_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = tmp_path / "run", trained().state_dict()
    write_config(run / "config.yaml", {"model": OURS})
    write_checkpoint(run / "checkpoints" / "last.ckpt", state)
    script(monkeypatch, run, "--to", "diffusers", "--output", tmp_path / "d")
    script(monkeypatch, "--from", "diffusers", tmp_path / "d", "--output", tmp_path / "back")
    config, back = read_run(tmp_path / "back")
    expected = choose_weights(state, "average")
    assert config == {"model": OURS} and back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    script(monkeypatch, run, "--to", "compvis", "--weights", "both", "--output", tmp_path / "c")
    assert read_weights(tmp_path / "c" / "model.ckpt").keys() == {*state, "unconditional_guidance_vex"}
    script(monkeypatch, run, "--float32", "--weights", "raw", "--output", tmp_path / "s")
    raw = read_weights(tmp_path / "s" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in raw.items())
    script(monkeypatch, run, "--weights", "both", "--output", tmp_path / "h")
    half = read_weights(tmp_path / "h" / "model.safetensors")
    assert half.keys() == state.keys() and torch.equal(half["model_ema.decay"], state["model_ema.decay"])
    assert half["model_ema.diffusion_modelout2weight"].dtype == torch.float16
    large = "first_stage_model.encoder.conv_in.bias"
    write_checkpoint(run / "checkpoints" / "last.ckpt", {**state, large: state[large] + 1e6})
    script(monkeypatch, run, "--output", tmp_path / "l")
    assert torch.equal(read_weights(tmp_path / "l" / "model.safetensors")[large], state[large] + 1e6)


def test_what_was_measured_of_latents_goes_with_a_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, measured = tmp_path / "run", {"latent_std": 2.0, "scale_factor": 0.5, "step": 7}
    write_config(run / "config.yaml", {"model": VQ})
    write_checkpoint(run / "checkpoints" / "last.ckpt", STAGE)
    script(monkeypatch, run, "--to", "diffusers", "--output", tmp_path / "none")
    write_json(run / "latents.json", measured)
    script(monkeypatch, run, "--output", tmp_path / "shipped")
    script(monkeypatch, tmp_path / "shipped", "--output", tmp_path / "again")
    assert measured_latents(tmp_path / "shipped") == measured_latents(tmp_path / "again") == measured
    assert (tmp_path / "again" / "config.yaml").read_text() == (tmp_path / "shipped" / "config.yaml").read_text()
    for source in (run, tmp_path / "again"):
        script(monkeypatch, source, "--to", "diffusers", "--output", tmp_path / f"d-{source.name}")
    factors = {name: read_json(tmp_path / name / "vqvae" / "config.json", "")["scaling_factor"] for name in FACTORS}
    assert factors == FACTORS
    script(monkeypatch, "--from", "diffusers", tmp_path / "d-run", "--output", tmp_path / "back")
    assert measured_latents(tmp_path / "back") == {"scale_factor": 0.5}


FACTORS = {"none": 1.0, "d-run": 0.5, "d-again": 0.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "compvis", "--weights", "both"), "the checkpoint has no running average"),
        (("--to", "diffusers", "--weights", "both"), "no running average|one set of weights"),
        (("--from", "diffusers", "--to", "compvis"), "--from diffusers writes safetensors"),
    ],
)
def test_the_script_refuses_what_cannot_be(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "config.yaml", {"model": VQ})
    write_weights(tmp_path / "model.safetensors", instantiate_from_config(VQ).state_dict())
    with pytest.raises(ValueError, match=message):
        script(monkeypatch, tmp_path, *words, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncated_ckpt(run: Path) -> None:
    write_checkpoint(run / "model.ckpt", STAGE)
    cut(run / "model.ckpt")


def truncated_safetensors(run: Path) -> None:
    write_weights(run / "model.safetensors", STAGE)
    cut(run / "model.safetensors")


def evil(run: Path) -> None:
    torch.save({"state_dict": STAGE, "callbacks": Evil(run / "made")}, run / "model.ckpt")


def plain_evil(run: Path) -> None:
    (run / "model.ckpt").write_bytes(pickle.dumps(Evil(run / "made")))


def no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def described_as(**model: Any) -> Callable[[Path], None]:
    """Returns a function that writes complete weights beside the config of another model."""

    def write(run: Path) -> None:
        write_weights(run / "model.safetensors", STAGE)
        write_config(run / "config.yaml", {"model": {**VQ, **model}})

    return write


def no_model(run: Path) -> None:
    write_weights(run / "model.safetensors", STAGE)
    write_config(run / "config.yaml", {"data": {}})


LATENT = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion"}
SYSTEM = {"target": "os.system", "params": {"command": "exit"}}


@pytest.mark.parametrize("form", ["safetensors", "compvis", "diffusers"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated_ckpt, "model.ckpt is not a complete checkpoint"),
        (truncated_safetensors, "model.safetensors is not a complete safetensors file"),
        (evil, ".mkdir, which could run code, and nothing of it was run"),
        (plain_evil, "it holds more than tensors, which could run code"),
        (no_config, "no config.yaml in"),
        (no_model, "config.yaml describes no model; got data"),
        (described_as(params={**VQ["params"], "n_embed": 9}), "1 of another shape: quantize.embedding.weight"),
        (described_as(params={**VQ["params"], "n_embedd": 8}), "has no parameter 'n_embedd'; did you mean 'n_embed'"),
        (described_as(**LATENT, params={"unet_config": unet()}), "needs the parameter 'first_stage_config'"),
        (described_as(**LATENT, params={"unet_config": unet(), "first_stage_config": VQ}), "does not fit Latent"),
        (described_as(**SYSTEM), "target 'os.system' is not trusted"),
        (
            described_as(**LATENT, params={"unet_config": SYSTEM, "first_stage_config": VQ}),
            "target 'os.system' is not trusted",
        ),
        (described_as(target="ldm.util.nearest", params={"word": "a", "known": []}), "is a function, expected a class"),
        (described_as(target="ldm.modules.ema.LitEma", params=[1]), "LitEma: params: got [1], expected a mapping"),
        (
            described_as(target="torchvision.transforms.Compose", params={"transforms": []}),
            "expected that of a network",
        ),
        (
            described_as(**LATENT, params={"first_stage_config": {**VQ, "params": [1]}}),
            "first_stage_config: params: got",
        ),
        (
            described_as(**LATENT, params={"unet_config": unet(), "first_stage_config": VQ, "cond_stage_config": 3}),
            "cond_stage_config: got 3, expected a mapping with a target, __is_first_stage__ or",
        ),
        (
            described_as(**LATENT, params={"unet_config": unet(), "first_stage_config": VQ, "linear_start": -1.0}),
            "linear_start=-1.0, linear_end=0.02: expected numbers between 0 and 1",
        ),
        (
            described_as(target=unet()["target"], params={**unet()["params"], "dims": 4}),
            "dims is 4, expected 1, 2 or 3",
        ),
        (
            described_as(params={**VQ["params"], "ddconfig": {**DDCONFIG, "ch_mult": []}}),
            "VQModelInterface: IndexError",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else value,
)
def test_bad_input_ends_in_one_line_with_nothing_run_or_written(
    spoil: Callable[[Path], None],
    message: str,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_config(tmp_path / "config.yaml", {"model": VQ})
    spoil(tmp_path)
    monkeypatch.setattr("sys.argv", ["e", str(tmp_path), "--to", form, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        export_checkpoint.main()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and message in said.err and len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "made").exists()


def test_a_run_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--output: got .*, the folder that is read"):
        script(monkeypatch, tmp_path, "--to", "compvis", "--output", tmp_path / "." / "")
