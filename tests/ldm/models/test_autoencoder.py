"""The first stages against the original's numbers; training laws."""

import logging
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from golden_cases import GoldenCase, golden_names, load_golden
from pictures import write_pictures
from pytorch_lightning.callbacks import ModelCheckpoint
from small_models import DDCONFIG, KL_DDCONFIG

from ldm.checkpoint import write_weights
from ldm.data import DataModule
from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModel, VQModelInterface
from ldm.models.tiling import decode_tiled, encode_tiled
from ldm.modules.diffusionmodules.model import Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import instantiate_from_config

LOSS = {
    "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 4, "disc_num_layers": 1, "disc_ndf": 4},
}
KL_LOSS = {
    "target": "ldm.modules.losses.LPIPSWithDiscriminator",
    "params": {"disc_start": 2, "disc_num_layers": 1, "disc_ndf": 4, "kl_weight": 1e-6, "disc_weight": 0.5},
}


@pytest.mark.parametrize("name", golden_names("encoder_") + golden_names("decoder_"))
def test_encoder_and_decoder_match_original(name: str) -> None:
    case = load_golden(name)
    x = case.part("in")["x"].requires_grad_()
    y = case.build()(x)
    y.square().mean().backward()
    case.check("y", y)
    case.check("grad_x", x.grad, "grad")


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
    for key in case.part("out"):
        case.check(key, got[key])


def test_encode_refuses_sides_that_do_not_halve() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 7\), expected \[B, 3, H, W\] with sides divisible by 2"):
        VQModel(DDCONFIG, 16, 3).encode(torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match="'vanilla' or 'none'.*'linear'"):
        Encoder(**DDCONFIG, attn_type="linear")


@torch.no_grad()
def test_kl_model_matches_original() -> None:
    case = load_golden("autoencoderkl")
    given, model = case.part("in"), case.build()
    posterior = model.encode(given["x"])
    sample = posterior.sample(given["noise"])
    got = {"moments": posterior.parameters, "mean": posterior.mean, "logvar": posterior.logvar, "std": posterior.std}
    got |= {"var": posterior.var, "mode": posterior.mode(), "sample": sample, "kl": posterior.kl()}
    got |= {"kl_other": posterior.kl(DiagonalGaussianDistribution(given["other_parameters"]))}
    got |= {"nll": posterior.nll(given["z"]), "decode_z": model.decode(given["z"])}
    got |= {"rec_sample": model(given["x"], noise=given["noise"])[0]}
    got |= {"rec_mode": model(given["x"], sample_posterior=False)[0]}
    for key in case.part("out"):
        case.check(key, got[key])


def test_identity_first_stage_changes_nothing() -> None:
    image = torch.randn(2, 3, 4, 4)
    stage = IdentityFirstStage("any", embed_dim=3)
    assert torch.equal(stage.decode(stage.encode(image)), image)
    assert torch.equal(stage.quantize(image), image)
    assert IdentityFirstStage(vq_interface=True).quantize(image)[1:] == (None, [None, None, None])
    large = image.repeat(1, 1, 5, 5)
    for tile in (8, "4KB"):
        torch.testing.assert_close(decode_tiled(stage, encode_tiled(stage, large, tile), tile), large)


def test_compvis_arguments_are_taken_and_wrong_ones_named() -> None:
    params = {"embed_dim": 3, "n_embed": 8, "ddconfig": DDCONFIG, "lossconfig": {"target": "torch.nn.Identity"}}
    params |= {"monitor": "val/rec_loss", "ignore_keys": [], "remap": None, "sane_index_shape": True}
    config = {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}
    model = instantiate_from_config(config)
    latent = model.encode(torch.rand(1, 3, 8, 8))
    assert model.nearest_codes(latent)[2].shape == (1, 4, 4)
    assert torch.equal(model.decode(latent, force_not_quantize=True), model.decode(latent, quantize=False))
    with pytest.raises(ValueError, match="VQModelInterface.*'n_embedd'.*'n_embed'"):
        instantiate_from_config(config | {"params": params | {"n_embedd": 8}})
    with pytest.raises(ValueError, match="VQModelInterface.*'n_embed'"):
        instantiate_from_config(config | {"params": {"embed_dim": 3, "ddconfig": DDCONFIG}})
    assert VQModelInterface(3, ddconfig=DDCONFIG, n_embed=8).quantize.n_e == 8
    with pytest.raises(ValueError, match="ddconfig.double_z.*false"):
        AutoencoderKL(DDCONFIG, None, 3)


def test_weights_to_start_from_prefer_the_average_and_skip_ignored_names(tmp_path: Path) -> None:
    averaged = VQModel(DDCONFIG, 8, 3, LOSS, use_ema=True)
    followed = {name for name in averaged.state_dict() if name.startswith("model_ema.")}
    assert "model_ema.decoderconv_outweight" in followed and not any("discriminator" in name for name in followed)
    averaged.model_ema.get_buffer("decoderconv_outweight").fill_(0.5)
    write_weights(tmp_path / "a.safetensors", averaged.state_dict())
    path = str(tmp_path / "a.safetensors")
    plain = VQModel(DDCONFIG, 8, 3, ckpt_path=path)
    assert (plain.decoder.conv_out.weight == 0.5).all()
    assert torch.equal(plain.encoder.conv_in.weight, averaged.encoder.conv_in.weight)
    start = VQModel(DDCONFIG, 8, 3, ckpt_path=path, ignore_keys=["encoder.conv_in"])
    assert torch.equal(start.decoder.conv_out.weight, plain.decoder.conv_out.weight)
    assert not torch.equal(start.encoder.conv_in.weight, averaged.encoder.conv_in.weight)
    write_weights(tmp_path / "b.safetensors", plain.state_dict())  # without an average: it starts at the weights
    again = VQModel(DDCONFIG, 8, 3, LOSS, ckpt_path=str(tmp_path / "b.safetensors"), use_ema=True)
    for name, weight in plain.named_parameters():
        assert torch.equal(again.model_ema.get_buffer(name.replace(".", "")), weight)
    kept = VQModel(DDCONFIG, 8, 3, LOSS, ckpt_path=path, use_ema=True)
    assert (kept.model_ema.get_buffer("decoderconv_outweight") == 0.5).all()
    assert torch.equal(kept.decoder.conv_out.weight, averaged.decoder.conv_out.weight)


def test_label_maps_are_shown_in_colours_and_batches_resized() -> None:
    model = VQModel(DDCONFIG, 8, 3, colorize_nlabels=5, batch_resize_range=[16, 48])
    maps = torch.eye(5)[torch.arange(12).view(1, 3, 4) % 5].movedim(-1, 1)
    shown = model.shown(maps)
    assert shown.shape == (1, 3, 3, 4) and shown.min() == -1 and shown.max() == 1
    assert torch.equal(shown[0, :, 0, 0], shown[0, :, 1, 1])  # places 0 and 5 hold the same label
    assert model.resized(torch.zeros(1, 3, 8, 8), 0).shape == (1, 3, 48, 48)  # the first at the largest
    assert list(model.resize_sides) == [16, 32, 48]
    for wrong in ([48, 16], [17, 49], [16, 40], [0, 16]):
        with pytest.raises(ValueError, match=r"batch_resize_range: got \[\d+, \d+\], expected .* divisible by 2"):
            VQModel(DDCONFIG, 8, 3, batch_resize_range=wrong)


def fit(
    folder: Path, pictures: dict, steps: int, resume: Path | None = None, kind: str = "vq"
) -> VQModel | AutoencoderKL:
    torch.manual_seed(0)
    if kind == "vq":
        model = VQModel(DDCONFIG, 8, 3, LOSS, warm_up_steps=2, learning_rate=1e-3)
    else:
        model = AutoencoderKL(KL_DDCONFIG, KL_LOSS, 3, learning_rate=1e-3, learn_logvar=True, use_ema=True)
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
    with pytest.raises(ValueError, match="Identity.*model.params.lossconfig"):
        trainer.fit(VQModel(DDCONFIG, 8, 3), datamodule=data)


@pytest.mark.gpu
def test_training_is_refused_in_float16(tmp_path: Path) -> None:
    data = DataModule(2, train=write_pictures(tmp_path, 2))
    trainer = pl.Trainer(max_steps=1, accelerator="gpu", precision="16-mixed", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="precision.*16-mixed.*bf16-mixed or 32"):
        trainer.fit(VQModel(DDCONFIG, 8, 3, LOSS), datamodule=data)


def test_training_sets_codes_and_starts_the_discriminator_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 7)
    caplog.set_level(logging.INFO, logger="ldm")
    torch.manual_seed(0)
    start = VQModel(DDCONFIG, 8, 3, LOSS).state_dict()
    warm = fit(tmp_path / "warm", pictures, 2).state_dict()
    assert "distance of reconstructions: l1 x 1, no perceptual network" in caplog.messages
    straight = fit(tmp_path / "straight", pictures, 5).state_dict()
    codes, critic = "quantize.embedding.weight", "loss.discriminator.main.0.weight"
    assert torch.equal(warm[codes], start[codes])
    assert straight[codes].std() > 2 * start[codes].std()
    assert torch.equal(warm[critic], start[critic])
    assert not torch.equal(straight[critic], start[critic])
    just_before_codes = tmp_path / "straight" / "step=2.ckpt"
    resumed = fit(tmp_path / "resumed", pictures, 5, resume=just_before_codes).state_dict()
    assert [key for key, value in straight.items() if not torch.equal(resumed[key], value)] == []


def test_kl_training_moves_all_parts_and_resumes_exactly(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 7)
    start = fit(tmp_path / "start", pictures, 0, kind="kl").state_dict()
    before = fit(tmp_path / "before", pictures, 2, kind="kl").state_dict()
    after = fit(tmp_path / "after", pictures, 4, kind="kl").state_dict()
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "loss.logvar", "model_ema.decoderconv_outweight"):
        assert not torch.equal(before[name], start[name]), name
    critic = "loss.discriminator.main.0.weight"
    assert torch.equal(before[critic], start[critic]) and not torch.equal(after[critic], start[critic])
    resumed = fit(tmp_path / "resumed", pictures, 4, tmp_path / "after" / "step=2.ckpt", kind="kl").state_dict()
    assert [key for key, value in after.items() if not torch.equal(resumed[key], value)] == []


def test_a_misspelt_network_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="ddconfig.*'ch_mul'.*'ch_mult'"):
        VQModelInterface(3, ddconfig={**DDCONFIG, "ch_mul": [1]}, n_embed=8)
