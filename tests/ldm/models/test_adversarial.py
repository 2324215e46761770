"""Two optimisers: clipping, accumulation, rates, averages, precision, what validation logs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pictures import write_pictures
from small_models import KL_DDCONFIG, VQ

from ldm.callbacks import LastStep
from ldm.data import DataModule
from ldm.models.autoencoder import AutoencoderKL, VQModel

PARAMS = VQ["params"]
SCHEDULE = {
    "target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
    "params": {"warm_up_steps": 4, "lr_start": 0.2, "lr_max": 1.0, "lr_min": 0.0, "max_decay_steps": 9},
}


def loss(start: int, **params: Any) -> dict[str, Any]:
    params |= {"disc_start": start, "disc_num_layers": 1, "disc_ndf": 4}
    return {"target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": params}


def fit(pictures: dict[str, Any], steps: int, batch: int = 2, start: int = 99, **options: Any) -> VQModel:
    """Trains a model; `options` are those of the trainer, under `model` and `loss` those of model and loss."""
    torch.manual_seed(0)
    config = loss(start, **options.pop("loss", {}))
    model = VQModel(**PARAMS, lossconfig=config, learning_rate=1e-3, **options.pop("model", {}))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, datamodule=DataModule(batch, train=pictures, validation=pictures))
    assert trainer.global_step == steps
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 8)


def first_gradients(model: VQModel) -> list[list[torch.Tensor]]:
    """The gradients of both networks' first step, of which Adam keeps half."""
    return [[2 * state["exp_avg"] for state in o.state.values()] for o in model.trainer.optimizers]


def test_two_batches_accumulated_are_one_of_twice_the_size(pictures: dict[str, Any]) -> None:
    accumulated = fit(pictures, 1, batch=2, accumulate_grad_batches=2)
    assert accumulated.trainer.accumulate_grad_batches == 2  # the trainer has it back
    gradients = [first_gradients(m)[0] for m in (fit(pictures, 1, batch=4), accumulated, fit(pictures, 1, batch=2))]
    assert len(gradients[0]) == len(list(accumulated.generator_parameters()))
    big, small, single = (torch.cat([g.flatten() for g in found]) for found in gradients)
    assert (small - big).abs().max() < 1e-5 * big.abs().max() < (single - big).abs().max()
    assert first_gradients(fit(pictures, 1, start=0, accumulate_grad_batches=3))[1]  # both networks take their step


DEVICES = """
import json, sys, torch
from test_adversarial import first_gradients, fit
pictures, folder = json.loads(sys.argv[1]), sys.argv[2]
one = fit(pictures, 1, start=0, loss={"disc_weight": 0.0}, devices=2)
options = {"warm_up_steps": 1, "codebook": {"restart_every": 1}}
more = fit(pictures, 4, start=2, model=options, devices=2)
found = {"gradients": first_gradients(one)[0], "weights": list(more.parameters())}
torch.save(found, f"{folder}/{more.global_rank}.pt")
"""


def test_two_devices_take_the_step_of_one_with_twice_the_batch(pictures: dict[str, Any], tmp_path: Path) -> None:
    here = Path(__file__).parent
    (tmp_path / "train.py").write_text(DEVICES)
    environment = os.environ | {"PYTHONPATH": f"{here.parents[2]}:{here.parents[1]}:{here}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "train.py"), json.dumps(pictures), str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    whole = first_gradients(fit(pictures, 1, batch=4))[0]
    assert len(whole) == len(first["gradients"])
    largest = max(gradient.abs().max() for gradient in whole)
    for got, other, expected in zip(first["gradients"], second["gradients"], whole, strict=True):
        assert torch.equal(got, other) and (got - expected).abs().max() < 1e-5 * largest
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))


def test_gradients_of_both_networks_are_clipped(pictures: dict[str, Any]) -> None:
    def norms(**options: Any) -> list[float]:
        found = first_gradients(fit(pictures, 1, start=0, **options))
        return [float(torch.nn.utils.get_total_norm(gradients)) for gradients in found]

    free = norms()
    assert min(free) > 0.02
    assert norms(gradient_clip_val=0.01) == pytest.approx([0.01, 0.01], rel=1e-3)
    assert norms(gradient_clip_val=1e3) == pytest.approx(free, rel=1e-5)
    by_value = fit(pictures, 1, start=0, gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    largest = [max(g.abs().max() for g in gradients) for gradients in first_gradients(by_value)]
    assert largest == pytest.approx([1e-4, 1e-4], rel=1e-4)


def test_both_rates_follow_the_schedule(pictures: dict[str, Any]) -> None:
    model = fit(pictures, 3, start=1, model={"scheduler_config": SCHEDULE, "lr_g_factor": 2.0})
    rates = [optimizer.param_groups[0]["lr"] for optimizer in model.trainer.optimizers]
    assert rates == pytest.approx([2e-3 * 0.8, 1e-3 * 0.8])


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss(pictures: dict[str, Any]) -> None:
    kinds = ("plain", "ema")
    for kind in kinds:
        options = {"model": {"codebook": {"kind": kind}}, "start": 2}
        exact, rough = fit(pictures, 4, **options), fit(pictures, 4, precision="bf16-mixed", **options)
        assert {p.dtype for p in rough.parameters()} == {torch.float32}
        got, expected = (float(m.trainer.callback_metrics["val/rec_loss"]) for m in (rough, exact))
        assert got == pytest.approx(expected, rel=0.02) and got != expected


def test_validation_judges_the_average_and_measures_codes_over_the_epoch(pictures: dict[str, Any]) -> None:
    model = fit(pictures, 4, model={"use_ema": True}).eval()
    logged = {name: float(value) for name, value in model.trainer.callback_metrics.items()}
    images = torch.stack([model.trainer.datamodule.datasets["validation"][i]["image"] for i in range(8)])
    with torch.no_grad():
        raw = (model.reconstruct(images) - images).abs().mean().item()
        with model.averaged():
            latent = model.encode(images)
            indices = model.nearest_codes(latent)[2]
            average = (model.reconstruct(images) - images).abs().mean().item()
    assert logged["val/rec_loss"] == pytest.approx(average, rel=1e-5) and abs(raw - average) > 1e-5
    assert logged["val/code_usage"] == len(indices.unique()) / 8
    share = indices.bincount(minlength=8) / indices.numel()
    assert logged["val/perplexity"] == pytest.approx(torch.special.entr(share).sum().exp().item(), rel=1e-5)
    assert logged["val/latent_mean"] == pytest.approx(latent.mean().item(), rel=1e-4, abs=1e-6)
    assert 0 < logged["train/code_usage"] <= 1 and 1 <= logged["train/perplexity"] <= 8


def test_the_average_follows_codes_that_are_set_as_the_warm_up_ends(pictures: dict[str, Any]) -> None:
    for kind in ("plain", "cosine"):
        model = fit(pictures, 3, model={"use_ema": True, "warm_up_steps": 2, "codebook": {"kind": kind}})
        codes = model.quantize.embedding.weight.detach()
        with model.averaged():
            averaged = model.quantize.embedding.weight.detach()
            assert (averaged - codes).abs().max() < 2e-3 < codes.std()  # two steps of the rate away at most
        assert torch.equal(model.quantize.embedding.weight, codes)


def test_a_model_with_a_warm_up_is_judged_with_its_codes_after_training(pictures: dict[str, Any]) -> None:
    model = fit(pictures, 2, model={"warm_up_steps": 3})
    assert model.warming and "val/code_usage" not in model.trainer.callback_metrics
    free = VQModel(**PARAMS, warm_up_steps=3).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(free.reconstruct(images), free.decode(free.encode(images)))
    assert not torch.equal(free.reconstruct(images), free.decode(free.encode(images), quantize=False))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    [logged] = trainer.validate(free, DataModule(4, validation=pictures), verbose=False)
    assert logged["val/code_usage"] > 0


@pytest.mark.parametrize("kind", ["plain", "ema", "cosine", "simvq"])
def test_every_codebook_resumes_exactly(kind: str, pictures: dict[str, Any], tmp_path: Path) -> None:
    options = {"codebook": {"kind": kind, "restart_every": 2}, "warm_up_steps": 1, "use_ema": True}
    params = PARAMS | {"ddconfig": PARAMS["ddconfig"] | {"dropout": 0.2}}

    def run(steps: int, resume: Path | None = None) -> pl.Trainer:
        torch.manual_seed(0)
        model = VQModel(**params, lossconfig=loss(2), learning_rate=1e-2, scheduler_config=SCHEDULE, **options)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        last = LastStep(tmp_path / f"{steps}.ckpt")
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, callbacks=last, **quiet)
        trainer.fit(model, datamodule=DataModule(2, train=pictures), ckpt_path=resume, weights_only=False)
        return trainer

    run(3), run(4)  # in the middle and at the end of an epoch
    whole = run(6)
    for start in (3, 4):
        resumed = run(6, tmp_path / f"{start}.ckpt")
        expected, got = whole.lightning_module.state_dict(), resumed.lightning_module.state_dict()
        assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
        usage = resumed.lightning_module.usage["restart"]
        assert torch.equal(usage.counts, whole.lightning_module.usage["restart"].counts) and usage.batches > 0
        assert resumed.callback_metrics["train/perplexity"] == whole.callback_metrics["train/perplexity"]


def test_a_learned_scale_of_the_likelihood_moves_with_the_generator() -> None:
    config = {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {"disc_start": 0, "disc_ndf": 4}}
    for learned in (False, True):
        model = AutoencoderKL(KL_DDCONFIG, config, 3, learn_logvar=learned)
        ours, theirs = ({id(p) for p in o.param_groups[0]["params"]} for o in model.configure_optimizers()[0])
        assert (id(model.loss.logvar) in ours) is learned and id(model.loss.logvar) not in theirs
        assert not ours & theirs
