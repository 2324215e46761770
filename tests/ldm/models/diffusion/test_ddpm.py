"""Latent diffusion: the loss, the scale factor, names, sampling."""

from pathlib import Path

import pytest
import torch
from small_models import IDENTITY, VQ, randomise, unet

from ldm.checkpoint import write_weights
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config

BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}


def make(first_stage: dict = IDENTITY, **options: object) -> LatentDiffusion:
    torch.manual_seed(0)
    return LatentDiffusion(first_stage, unet_config=unet(), timesteps=20, **options)


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_loss_is_the_squared_error_of_what_is_predicted(kind: str) -> None:
    model = make(parameterization=kind)  # a new U-Net predicts zeros
    latent, noise = images(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 5, 11, 19])
    signal = model.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    target = {"eps": noise, "x0": latent, "v": signal * noise - (1 - signal**2).sqrt() * latent}[kind]
    assert torch.allclose(model.losses(latent, None, t, noise)["loss"], target.square().mean((1, 2, 3)), atol=1e-6)
    perfect = {"eps": (latent, 0 * noise), "x0": (0 * latent, noise), "v": (0 * latent, 0 * noise)}[kind]
    assert torch.equal(model.losses(perfect[0], None, t, perfect[1])["loss"], torch.zeros(4))


def test_the_schedule_has_every_digit_of_the_config() -> None:
    betas = [0.1 + 0.02 * step for step in range(20)]
    model = make(given_betas=betas, v_posterior=0.4)
    exact = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    assert torch.equal(model.schedule.alphas_cumprod, exact) and model.schedule.v_posterior == 0.4
    lower = torch.tensor(betas[5]) * (1 - exact[4]) / (1 - exact[5])
    assert float(model.posterior_variance[5]) == pytest.approx(0.6 * float(lower) + 0.4 * betas[5], rel=1e-6)


def test_the_model_sees_the_noised_latent() -> None:
    model = make()
    randomise(model.model)
    latent, noise, t = images(), images(seed=3), torch.tensor([1, 7, 12, 19])
    keep = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    predicted = model.model(keep.sqrt() * latent + (1 - keep).sqrt() * noise, t)
    assert torch.allclose(
        model.losses(latent, None, t, noise)["loss"], (predicted - noise).square().mean((1, 2, 3)), rtol=1e-4
    )


def test_training_steps_are_a_function_of_seed_and_step() -> None:
    batch = {"image": images()}
    losses = [make(seed=seed).training_step(batch, number).item() for seed, number in ((0, 3), (0, 3), (0, 4), (1, 3))]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    assert losses[0] == pytest.approx(1.0, abs=0.2)  # zeros against noise


def test_scale_factor_is_measured_once_and_inverts() -> None:
    model = make(scale_by_std=True)
    model.on_train_batch_start({"image": 3 * images()}, 0)
    assert model.to_latent(3 * images()).std() == pytest.approx(1.0, abs=1e-5)
    measured = model.scale_factor.clone()
    model.on_train_batch_start({"image": images()}, 1)
    assert torch.equal(model.scale_factor, measured) and "scale_factor" in model.state_dict()
    assert torch.allclose(model.to_image(model.to_latent(images())), images(), atol=1e-6)
    assert torch.equal(make(scale_factor=0.5).to_latent(images()), 0.5 * images())


def test_first_stage_is_frozen_and_never_trains() -> None:
    model = make(VQ)
    model.train()
    assert model.training and model.model.training and not model.first_stage_model.training
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())
    trained = {id(p) for group in model.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.model.parameters()}
    model.training_step({"image": images()}, 0).backward()
    assert all(p.grad is None for p in model.first_stage_model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.parameters())


def test_a_first_stage_with_an_average_is_used_with_it(tmp_path: Path) -> None:
    averaged = {**VQ, "params": {**VQ["params"], "use_ema": True}}
    stage = instantiate_from_config(averaged)
    stage.model_ema.get_buffer("decoderconv_outweight").fill_(0.5)
    write_weights(tmp_path / "stage.safetensors", stage.state_dict())
    averaged["params"]["ckpt_path"] = str(tmp_path / "stage.safetensors")
    model = make(averaged)
    assert (model.first_stage_model.decoder.conv_out.weight == 0.5).all()
    assert not any("first_stage_model.model_ema" in name for name in model.state_dict())
    # A checkpoint of other code that holds both: its first stage is used as it is.
    both = model.state_dict() | {f"first_stage_model.{name}": value for name, value in stage.state_dict().items()}
    write_weights(tmp_path / "whole.safetensors", both)
    again = make(VQ, ckpt_path=str(tmp_path / "whole.safetensors"))
    assert torch.equal(again.first_stage_model.decoder.conv_out.weight, stage.decoder.conv_out.weight)


def test_names_are_those_of_checkpoints() -> None:
    model = make(VQ)
    names = set(model.state_dict())
    assert {name for name in names if "." not in name} == BUFFERS
    assert set(make(VQ, scale_by_std=True).state_dict()) == names | {"scale_factor"}
    parts = {name.split(".")[0] for name in names if "." in name}
    assert parts == {"model", "model_ema", "first_stage_model"}
    raw = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    average = {name.removeprefix("model_ema.") for name in names if name.startswith("model_ema.")}
    assert all(name.startswith("diffusion_model.") for name in raw)
    assert average == {name.replace(".", "") for name in raw} | {"decay", "num_updates"}
    assert "model_ema" not in {name.split(".")[0] for name in make(use_ema=False).state_dict()}


def test_the_average_is_in_place_within_its_scope_only() -> None:
    model = make(ema_decay=0.5)
    start = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    randomise(model.model)
    model.model_ema(model.model)
    name = "diffusion_model.out.2.weight"
    raw = dict(model.model.named_parameters())[name].detach().clone()
    with model.ema_scope():
        inside = dict(model.model.named_parameters())[name].detach().clone()
    decay = 2 / 11  # (1 + n) / (10 + n) after the first update
    assert torch.allclose(inside, decay * start[name] + (1 - decay) * raw, atol=1e-6)
    assert torch.equal(dict(model.model.named_parameters())[name], raw)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_an_image_depends_on_its_seed_alone(sampler: str, eta: float) -> None:
    model = make()
    randomise(model.model)
    steps = 20 if sampler == "ddpm" else 5
    options: dict = {"sampler": sampler, "steps": steps, "eta": eta}
    together = model.sample(None, (3, 8, 8), [3, 9, 7], **options)
    alone = model.sample(None, (3, 8, 8), [9], **options)
    assert together.shape == (3, 3, 8, 8)
    assert torch.allclose(together[1:2], alone, atol=1e-4 * float(alone.abs().max()))
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_sampling_refuses_what_does_not_fit() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"'ddimm'.*'ddim'"):
        model.sample(None, (3, 8, 8), [0], sampler="ddimm")
    with pytest.raises(ValueError, match="1 seeds.*2 contexts"):
        model.sample(torch.zeros(2, 1, 4), (3, 8, 8), [0])
    with pytest.raises(ValueError, match="parameterization"):
        make(parameterization="noise")


def test_weights_are_loaded_with_or_without_an_average(tmp_path: Path) -> None:
    source = make()
    randomise(source.model)
    state = source.state_dict()
    write_weights(whole := tmp_path / "whole.safetensors", state)
    plain = {k: v for k, v in state.items() if not k.startswith("model_ema.")}
    write_weights(raw := tmp_path / "raw.safetensors", plain)
    got = make(ckpt_path=str(whole)).state_dict()
    assert [name for name in state if not torch.equal(got[name], state[name])] == []
    got = make(ckpt_path=str(raw)).state_dict()
    assert [name for name in plain if not torch.equal(got[name], plain[name])] == []
    short = "model_ema.diffusion_modelout2weight"
    assert torch.equal(got[short], plain["model.diffusion_model.out.2.weight"])
    assert torch.equal(make(ckpt_path=str(whole), use_ema=False).betas, source.betas)
    write_weights(tmp_path / "cut.safetensors", {k: v for k, v in state.items() if k != short})
    with pytest.raises(ValueError, match=f"1 missing: {short}"):
        make(ckpt_path=str(tmp_path / "cut.safetensors"))


def test_min_snr_weighs_what_is_minimised_and_not_what_is_reported() -> None:
    plain, weighted = make(), make(min_snr_gamma=5.0)
    assert plain.state_dict().keys() == weighted.state_dict().keys()
    weighted.load_state_dict(plain.state_dict())
    t, noise = torch.tensor([3, 15]), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    terms = [model.losses(images(2), None, t, noise) for model in (plain, weighted)]
    assert torch.equal(terms[0]["loss_simple"], terms[1]["loss_simple"])
    expected = plain.schedule.min_snr_weights("eps", 5.0)[t] * terms[0]["loss"]
    torch.testing.assert_close(terms[1]["loss"], expected)


def test_learning_rate_follows_the_schedule() -> None:
    scheduler = {
        "target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
        "params": {"warm_up_steps": 10, "lr_start": 0.1, "lr_max": 1.0, "lr_min": 0.0, "max_decay_steps": 20},
    }
    made = make(learning_rate=2e-3, weight_decay=0.3, scheduler_config=scheduler).configure_optimizers()
    group = made["optimizer"].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(2e-4), 0.3)
    assert made["lr_scheduler"]["interval"] == "step"


@torch.no_grad()
def test_validation_is_the_same_every_time_and_log_images_has_three_columns() -> None:
    model = make()
    randomise(model.model)
    logged: list[dict] = []
    model.log = lambda name, value, **_: logged[-1].update({name: value})  # Lightning's, needs a trainer
    for seed in (1, 2):
        torch.manual_seed(seed)
        logged.append({})
        model.validation_step({"image": images()}, 0)
    assert logged[0] == logged[1] and logged[0]["val/loss"] != logged[0]["val/loss_ema"]
    assert logged[0]["val/loss_ema"] == pytest.approx(1.0, abs=0.2)  # the average is still the new U-Net
    columns = model.log_images({"image": images(2)})
    assert list(columns) == ["inputs", "reconstructions", "samples"]
    assert torch.equal(columns["reconstructions"], images(2)) and columns["samples"].shape == (2, 3, 8, 8)
