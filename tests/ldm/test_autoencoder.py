"""The VQ first stage and its loss against the original's numbers; training laws."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from golden_cases import GoldenCase, error_of, golden_names, load_golden
from pictures import write_pictures
from pytorch_lightning.callbacks import ModelCheckpoint

from ldm.data import DataModule
from ldm.models.autoencoder import IdentityFirstStage, VQModel
from ldm.modules.diffusionmodules.model import Encoder
from ldm.modules.losses.vqperceptual import VQLPIPSWithDiscriminator, adaptive_weight, codebook_statistics

DDCONFIG = {
    "double_z": False,
    "z_channels": 3,
    "resolution": 8,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
LOSS = {
    "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 4, "disc_num_layers": 1, "disc_ndf": 4},
}


@pytest.mark.parametrize("name", golden_names("encoder_") + golden_names("decoder_"))
def test_encoder_and_decoder_match_original(name: str) -> None:
    case = load_golden(name)
    x = case.part("in")["x"].requires_grad_()
    y = case.build()(x)
    y.square().mean().backward()
    assert error_of(y, case.part("out")["y"]) <= case.card["tolerance"]["rtol_of_max_forward"]
    assert error_of(x.grad, case.part("out")["grad_x"]) <= case.card["tolerance"]["rtol_of_max_grad"]


def vq_outputs(model: VQModel, case: GoldenCase) -> dict[str, torch.Tensor]:
    """What our calls give, under the names of the original's."""
    given = case.part("in")
    latent = model.encode(given["x"])
    quantized, loss, indices = model.nearest_codes(latent)
    reconstruction, difference, _ = model(given["x"])
    got = {"prequant": latent, "quant": quantized, "quant_loss": loss, "indices": indices}
    got |= {"encode_quant": quantized, "encode_loss": loss, "encode_indices": indices}
    got |= {"forward_rec": reconstruction, "forward_diff": difference}
    got |= {"decode": model.decode(given["h"]), "decode_h": model.decode(given["h"], quantize=False)}
    got["decode_force_not_quantize"] = got["decode_h"]
    got["codebook_entry"] = model.quantize.get_codebook_entry(
        indices, (len(latent), *latent.shape[2:], latent.shape[1])
    )
    return got | {"decode_codebook_entry": model.decode(got["codebook_entry"], quantize=False)}


@pytest.mark.parametrize("name", ["vqmodel_attn", "vqinterface_noattn"])
@torch.no_grad()
def test_vq_model_matches_original(name: str) -> None:
    case = load_golden(name)
    got = vq_outputs(case.build(), case)
    for key, expected in case.part("out").items():
        if expected.dtype == torch.int64:
            assert torch.equal(got[key], expected), key
        else:
            assert error_of(got[key], expected) <= case.card["tolerance"]["rtol_of_max_forward"], key


def test_encode_refuses_sides_that_do_not_halve() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 7\), expected \[B, 3, H, W\] with sides divisible by 2"):
        VQModel(DDCONFIG, 16, 3).encode(torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match="expected 'vanilla' or 'none', got 'linear'"):
        Encoder(**DDCONFIG, attn_type="linear")


def test_identity_first_stage_changes_nothing() -> None:
    image = torch.randn(2, 3, 4, 4)
    stage = IdentityFirstStage()
    assert torch.equal(stage.decode(stage.encode(image)), image)


CASE = load_golden("loss_vqperceptual_hinge")
FORWARD = CASE.card["tolerance"]["rtol_of_max_forward"]
GRADIENT = CASE.card["tolerance"]["rtol_of_max_grad"]


def step_inputs() -> tuple[VQLPIPSWithDiscriminator, dict[str, torch.Tensor], torch.Tensor]:
    given = CASE.part("in")
    given["last_w"] = given["last_w"].clone().requires_grad_()
    reconstruction = torch.nn.functional.conv2d(given["h"], given["last_w"], padding=1)
    return CASE.build().train(), given, reconstruction


@pytest.mark.parametrize("step", [5, 11])
def test_generator_loss_matches_original(step: int) -> None:
    loss, given, reconstruction = step_inputs()
    expected = CASE.part(f"out.step{step}.opt0")
    total, log = loss.generator(given["x"], reconstruction, given["codebook_loss"], given["last_w"], step)
    total.backward()
    assert error_of(total, expected["loss"]) <= FORWARD
    assert error_of(given["last_w"].grad, expected["grad_last_w"]) <= GRADIENT
    assert set(log) == {"rec_loss", "quant_loss", "nll_loss", "total_loss"} | (
        {"g_loss", "d_weight"} if step >= 10 else set()
    )
    for key, value in log.items():
        tolerance = GRADIENT if key == "d_weight" else FORWARD
        assert error_of(value, expected[f"log.train.{key}"]) <= tolerance, key
    perplexity, used = codebook_statistics(given["ind"], 20)
    assert error_of(perplexity, expected["log.train.perplexity"]) <= FORWARD
    assert used == expected["log.train.cluster_usage"]
    if step >= 10:
        running = loss.discriminator.state_dict()["main.3.running_mean"]
        assert error_of(running, expected["after.discriminator.main.3.running_mean"]) <= FORWARD


@pytest.mark.parametrize("step", [5, 11])
def test_discriminator_loss_matches_original(step: int) -> None:
    loss, given, reconstruction = step_inputs()
    expected = CASE.part(f"out.step{step}.opt1")
    value, log = loss.discriminate(given["x"], reconstruction)
    value.backward()
    for key in ("logits_real", "logits_fake"):
        assert error_of(log[key], expected[f"log.train.{key}"]) <= FORWARD, key
    running = loss.discriminator.state_dict()["main.3.running_mean"]
    assert error_of(running, expected["after.discriminator.main.3.running_mean"]) <= FORWARD
    assert given["last_w"].grad is None
    if step >= 10:  # before, the original multiplies by zero
        assert error_of(value, expected["loss"]) <= FORWARD
        assert error_of(log["disc_loss"], expected["log.train.disc_loss"]) <= FORWARD
        norms = torch.stack([p.grad.norm() for p in loss.parameters()])
        assert error_of(norms, expected["grad_norms_of_loss_params"]) <= GRADIENT


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    assert adaptive_weight(10 * w.sum(), (w * torch.tensor([3.0, 4.0])).sum(), w) == pytest.approx(10 * 2**0.5 / 5.0001)
    assert adaptive_weight(w.sum(), 1e-9 * w.sum(), w) == 1e4


def test_codebook_statistics_of_a_uniform_use() -> None:
    perplexity, used = codebook_statistics(torch.tensor([0, 1, 2, 3]), 8)
    assert perplexity == pytest.approx(4.0) and used == 4


def test_loss_refuses_unknown_kinds_and_a_missing_network() -> None:
    with pytest.raises(ValueError, match="disc_loss=wgan"):
        VQLPIPSWithDiscriminator(0, disc_loss="wgan")
    with pytest.raises(ValueError, match="no perceptual network is configured"):
        VQLPIPSWithDiscriminator(0, perceptual_weight=1.0)


def test_codes_are_set_to_the_centres_of_clusters() -> None:
    model = VQModel(DDCONFIG, 2, 3)
    centres = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    noise = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    model.set_codes((centres[:, None] + noise).flatten(0, 1))
    codes = model.quantize.embedding.weight.detach()
    assert error_of(codes[codes[:, 0].argsort()], centres + noise.mean(1)) < 1e-6
    with pytest.raises(ValueError, match="got 1 latents to make 2 codes from"):
        model.set_codes(torch.zeros(1, 3))


def fit(folder: Path, pictures: dict, steps: int, resume: Path | None = None) -> VQModel:
    torch.manual_seed(0)
    model = VQModel(DDCONFIG, 8, 3, LOSS, warm_up_steps=2, learning_rate=1e-3)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = DataModule(2, train=pictures, validation=pictures)
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False)
    assert trainer.global_step == steps  # counts generator steps only
    return model


def test_training_is_refused_without_a_loss(tmp_path: Path) -> None:
    data = DataModule(2, train=write_pictures(tmp_path, 2))
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="the loss is Identity, which trains nothing; set model.params.lossconfig"):
        trainer.fit(VQModel(DDCONFIG, 8, 3), datamodule=data)


@pytest.mark.gpu
def test_training_is_refused_in_float16(tmp_path: Path) -> None:
    data = DataModule(2, train=write_pictures(tmp_path, 2))
    trainer = pl.Trainer(max_steps=1, accelerator="gpu", precision="16-mixed", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="precision: got 16-mixed, expected bf16-mixed or 32"):
        trainer.fit(VQModel(DDCONFIG, 8, 3, LOSS), datamodule=data)


def test_training_sets_codes_and_starts_the_discriminator_in_time(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 7)
    torch.manual_seed(0)
    start = VQModel(DDCONFIG, 8, 3, LOSS).state_dict()
    warm = fit(tmp_path / "warm", pictures, 2).state_dict()
    straight = fit(tmp_path / "straight", pictures, 5).state_dict()
    codes, critic = "quantize.embedding.weight", "loss.discriminator.main.0.weight"
    assert torch.equal(warm[codes], start[codes])
    assert straight[codes].std() > 2 * start[codes].std()
    assert torch.equal(warm[critic], start[critic])
    assert not torch.equal(straight[critic], start[critic])
    just_before_codes = tmp_path / "straight" / "step=2.ckpt"
    resumed = fit(tmp_path / "resumed", pictures, 5, resume=just_before_codes).state_dict()
    assert [key for key, value in straight.items() if not torch.equal(resumed[key], value)] == []
