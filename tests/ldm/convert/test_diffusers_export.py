"""Folders for diffusers: its own classes load them and give our numbers; the way back loses no bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DDCONFIG
from test_checkpoint_names import layout
from torch import Tensor, nn

from ldm.config import read_config
from ldm.convert.autoencoder import first_stage_names, first_stage_to_diffusers
from ldm.convert.diffusers import OTHER, export_diffusers, import_diffusers, renamed, scheduler_to_diffusers
from ldm.convert.unet import unet_from_diffusers, unet_names, unet_to_diffusers
from ldm.models.diffusion.samplers import ddim
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.util import instantiate_from_config

diffusers = pytest.importorskip("diffusers")
ROOT = Path(__file__).parents[3]
NETWORK = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
RELEASES = (
    "ldm__configs__latent-diffusion__cin256-v2",
    "ldm__configs__latent-diffusion__txt2img-1p4B-eval",
    "ldm__configs__retrieval-augmented-diffusion__768x768",
    "rdm__models__rdm__ffhq",
    "rdm__models__rdm__imagenet",
    "stable_diffusion_v1_derived",
)
UNET = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "context_dim": 24,
}
DD = {**DDCONFIG, "resolution": 16, "ch_mult": [1, 2], "attn_resolutions": [8]}
VQ = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {"embed_dim": 4, "n_embed": 16, "ddconfig": DD},
}
KL = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 3,
        "ddconfig": {**DD, "double_z": True},
        "lossconfig": {"target": "torch.nn.Identity"},
    },
}


def model_config(unet: dict[str, Any] | None = None, first: dict[str, Any] | None = None, **params: Any) -> Any:
    described = {"target": NETWORK, "params": {**UNET, **(unet or {})}}
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "unet_config": described,
            "first_stage_config": first or KL,
            "cond_stage_config": {"target": "torch.nn.Identity"},
            "conditioning_key": "crossattn",
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "use_ema": False,
            **params,
        },
    }


def built(config: dict[str, Any]) -> Any:
    """Returns the model of a config with random weights of the size that trained ones have."""
    module = instantiate_from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)
    return module


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def assert_bit_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name].dtype != expected[name].dtype] == []
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


def check_unet(model: nn.Module, folder: Path, x: Tensor, context: Tensor, **labels: Tensor) -> None:
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    t = torch.tensor([3, 801])
    with torch.no_grad():
        expected = model.model.diffusion_model(x, t, context=context, **labels)
        got = theirs(x, t, encoder_hidden_states=context, class_labels=labels.get("y")).sample
    assert float(expected.std()) > 0.01
    assert error(got, expected) < 1e-4


def check_first_stage(model: Any, folder: Path, image: Tensor) -> None:
    stage = model.first_stage_model
    with torch.no_grad():
        if (folder / "vae").is_dir():
            theirs = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
            latent, got = stage.encode(image).mode(), theirs.encode(image).latent_dist.mode()
        else:
            theirs = diffusers.VQModel.from_pretrained(folder, subfolder="vqvae").eval()
            latent, got = stage.encode(image), theirs.encode(image).latents
        assert error(got, latent) < 1e-4
        assert error(theirs.decode(latent).sample, stage.decode(latent)) < 1e-4
        assert theirs.config.scaling_factor == float(model.scale_factor)


def test_the_default_model_gives_the_same_numbers_in_diffusers_and_comes_back_bit_equal(tmp_path: Path) -> None:
    """Without its references, which have no counterpart."""
    config = read_config([ROOT / "configs" / "rdm.yaml"])
    params = config["model"]["params"]
    params.pop("references", None)
    params["unet_config"]["target"] = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    params["unet_config"]["params"].pop("reference_width", None)
    params["first_stage_config"]["params"].pop("ckpt_path", None)
    params["use_ema"] = False
    model = built(config["model"])
    model.scale_factor.fill_(1.2345678)
    export_diffusers(config, model.state_dict(), tmp_path)
    check_unet(model, tmp_path, numbers(2, 3, 16, 16), numbers(2, 4, 256))
    check_first_stage(model, tmp_path, numbers(1, 3, 64, 64))
    assert not (tmp_path / OTHER).exists()
    back, state = import_diffusers(tmp_path)
    assert back == config
    assert_bit_equal(state, model.state_dict())


@pytest.mark.parametrize(
    ("unet", "first"),
    [
        ({}, VQ),
        ({"attention_resolutions": [1, 2], "transformer_depth": 2, "use_scale_shift_norm": True}, KL),
        ({"num_head_channels": -1, "num_heads": 4, "legacy": False, "attention_resolutions": [1]}, KL),
        ({"num_classes": 5}, {**VQ, "params": {**VQ["params"], "ddconfig": {**DD, "attn_type": "none"}}}),
    ],
)
def test_every_option_with_a_counterpart_gives_the_same_numbers(
    unet: dict[str, Any], first: dict[str, Any], tmp_path: Path
) -> None:
    model_params = model_config(unet, first, scale_factor=0.5)
    model = built(model_params)
    export_diffusers({"model": model_params}, model.state_dict(), tmp_path)
    labels = {"y": torch.tensor([1, 4])} if "num_classes" in unet else {}
    check_unet(model, tmp_path, numbers(2, 3, 8, 8), numbers(2, 3, 24), **labels)
    check_first_stage(model, tmp_path, numbers(1, 3, 16, 16))
    # As a folder of strangers, which holds no config of ours.
    (tmp_path / "config.yaml").unlink()
    described, state = import_diffusers(tmp_path)
    assert_bit_equal(state, model.state_dict())
    again = instantiate_from_config(described["model"])
    again.load_state_dict(state)
    x, t, context = numbers(2, 3, 8, 8), torch.tensor([3, 801]), numbers(2, 3, 24)
    with torch.no_grad():
        expected = model.model.diffusion_model(x, t, context=context, **labels)
        assert torch.equal(again.eval().model.diffusion_model(x, t, context=context, **labels), expected)


@pytest.mark.parametrize("kind", ["ema", "cosine", "simvq"])
def test_codes_learned_in_other_ways_become_the_codes_they_make(kind: str, tmp_path: Path) -> None:
    """Alone, and inside of a model; the way back finds the same in both."""
    stage = {**VQ, "params": {**VQ["params"], "codebook": {"kind": kind}}}
    whole = built(inside := model_config({}, stage))
    alone = whole.first_stage_model
    export_diffusers({"model": stage}, alone.state_dict(), tmp_path / "alone")
    export_diffusers({"model": inside}, whole.state_dict(), tmp_path / "inside")
    latent = numbers(1, 4, 8, 8)
    for folder in (tmp_path / "alone", tmp_path / "inside"):
        theirs = diffusers.VQModel.from_pretrained(folder, subfolder="vqvae").eval()
        config, state = import_diffusers(folder)
        back = instantiate_from_config(config["model"]).eval()
        back.load_state_dict(state)
        with torch.no_grad():
            expected = alone.decode(latent)
            assert error(theirs.decode(latent).sample, expected) < 1e-4
            assert error(getattr(back, "first_stage_model", back).decode(latent), expected) < 1e-4


def test_a_first_stage_inside_leaves_its_loss_and_its_average_behind(tmp_path: Path) -> None:
    config = model_config({}, {**VQ, "params": {**VQ["params"], "use_ema": True}})
    kept = built(config).state_dict()
    trained = built(VQ | {"params": {**VQ["params"], "use_ema": True}}).state_dict()
    average = {f"first_stage_model.{name}": value for name, value in trained.items() if name.startswith("model_ema.")}
    assert average and not average.keys() & kept.keys()
    beside = {**average, "first_stage_model.loss.logvar": torch.zeros(())}
    export_diffusers({"model": config}, kept | beside, tmp_path)
    assert_bit_equal(import_diffusers(tmp_path)[1], kept)


def test_a_text_encoder_is_kept_beside_without_being_built(tmp_path: Path) -> None:
    target, params = "ldm.modules.encoders.modules.FrozenCLIPTextEmbedder", {"version": "no/such/folder"}
    config = model_config(cond_stage_config={"target": target, "params": params})
    state = built(model_config()).state_dict() | {"cond_stage_model.embedder.clip.weight": torch.ones(2)}
    export_diffusers({"model": config}, state, tmp_path)
    back, found = import_diffusers(tmp_path)
    assert back == {"model": config}
    assert_bit_equal(found, state)


@pytest.mark.parametrize("name", RELEASES)
def test_a_released_model_has_the_names_and_shapes_of_diffusers_own_class(name: str) -> None:
    params = layout(name)["config"]["params"]
    unet, first = params["unet_config"]["params"], params["first_stage_config"]
    described = unet_to_diffusers(unet)
    for kind, config, ours, names in (
        ("UNet2DConditionModel", described, {"target": NETWORK, "params": unet}, unet_names(unet)),
        (None, first_stage_to_diffusers(first, 1.0), first, first_stage_names(first["params"]["ddconfig"])),
    ):
        with torch.device("meta"):
            theirs = getattr(diffusers, kind or config["_class_name"]).from_config(config)
            own = instantiate_from_config(ours)
        got = {key: value.shape for key, value in renamed(own.state_dict(), names).items()}
        assert got == {key: value.shape for key, value in theirs.state_dict().items()}
    again = instantiate_on_meta(unet_from_diffusers(described))
    assert again == instantiate_on_meta(unet)


def instantiate_on_meta(unet: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        built = instantiate_from_config({"target": NETWORK, "params": unet})
    return {name: value.shape for name, value in built.state_dict().items()}


def test_a_first_stage_alone_is_exported_without_its_loss(tmp_path: Path) -> None:
    model = built(KL)
    export_diffusers({"model": KL}, {**model.state_dict(), "loss.logvar": torch.zeros(())}, tmp_path)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path, subfolder="vae").eval()
    image = numbers(1, 3, 16, 16)
    with torch.no_grad():
        assert error(theirs.encode(image).latent_dist.mode(), model.encode(image).mode()) < 1e-4
    config, state = import_diffusers(tmp_path)
    assert config == {"model": KL}
    assert_bit_equal(state, model.state_dict())


def test_what_has_no_place_in_diffusers_is_kept_beside(tmp_path: Path) -> None:
    config = model_config(learn_logvar=True, cond_stage_config={"target": "torch.nn.Linear", "params": LINEAR})
    model = built(config)
    export_diffusers({"model": config}, model.state_dict(), tmp_path)
    assert (tmp_path / OTHER).is_file()
    assert_bit_equal(import_diffusers(tmp_path)[1], model.state_dict())


LINEAR = {"in_features": 2, "out_features": 24}


@pytest.mark.parametrize("schedule", ["linear", "sqrt_linear", "cosine"])
@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_the_scheduler_takes_the_steps_of_our_ddim(schedule: str, parameterization: str, tmp_path: Path) -> None:
    params = {"beta_schedule": schedule, "parameterization": parameterization, "linear_start": 0.0015}
    params["linear_end"] = 0.0195
    ours = NoiseSchedule.from_name(schedule, 1000, 0.0015, 0.0195)
    described = scheduler_to_diffusers(params, ours.buffers()["betas"])
    (tmp_path / "scheduler_config.json").write_text(json.dumps(described))
    theirs = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    theirs.set_timesteps(20)

    def output(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * x) * (0.3 + t.reshape(-1, 1, 1, 1) / 1000)

    start = numbers(2, 3, 4, 4)
    x = start
    for t in theirs.timesteps:
        x = theirs.step(output(x, t), int(t), x).prev_sample
    expected = ddim(lambda x, t: ours.to_eps(parameterization, output(x, t), x, t), start, ours, 20)
    assert error(x, expected) < 1e-4


@pytest.mark.parametrize(
    ("unet", "name"),
    [
        ({"use_spatial_transformer": False, "context_dim": None}, "use_spatial_transformer is False"),
        ({"resblock_updown": True}, "resblock_updown is True"),
        ({"conv_resample": False}, "conv_resample is False"),
        ({"dims": 3}, "dims is 3"),
        ({"n_embed": 7}, "n_embed is 7"),
        ({"context_dim": [24, 24], "transformer_depth": 2}, "context_dim is"),
        ({"context_dim": None}, "context_dim is None"),
    ],
)
def test_an_option_without_counterpart_is_refused_by_name_and_nothing_written(
    unet: dict[str, Any], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        export_diffusers({"model": model_config(unet)}, {}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioning_key": "concat"}, "conditioning_key is 'concat', expected crossattn"),
        ({"conditioning_key": None}, "conditioning_key is 'concat', expected crossattn"),  # CompVis' concat_mode
        ({"conditioning_key": None, "cond_stage_config": None}, "conditioning_key is 'None', expected crossattn"),
        ({"unet_config": {"target": "torch.nn.Identity", "params": UNET}}, "got torch.nn.Identity, expected a UNetM"),
    ],
)
def test_a_model_that_does_not_look_at_tokens_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = model_config()
    state = built(config).state_dict()
    config["params"] |= change
    with pytest.raises(ValueError, match=message):
        export_diffusers({"model": config}, state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ddconfig": {**DD, "double_z": True, "resamp_with_conv": False}}, "resamp_with_conv is False"),
        ({"ddconfig": {**DD, "double_z": True, "tanh_out": True}}, "tanh_out is True"),
        ({"embed_dim": 5}, "embed_dim is 5, expected z_channels, 3"),
    ],
)
def test_a_first_stage_without_counterpart_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    first = {**KL, "params": {**KL["params"], **change}}
    with pytest.raises(ValueError, match=message):
        export_diffusers({"model": first}, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_pixels_and_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    pixel = {"target": "ldm.models.diffusion.ddpm.DDPM", "params": {"unet_config": {"target": NETWORK, "params": UNET}}}
    with pytest.raises(ValueError, match="got ldm.models.diffusion.ddpm.DDPM"):
        export_diffusers({"model": pixel}, {}, tmp_path)
    for text, message in (("{", "config.json is not JSON"), ("[]", "config.json holds a list, expected an object")):
        (tmp_path / "vae").mkdir(exist_ok=True)
        (tmp_path / "vae" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            import_diffusers(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    config = model_config()
    state = built(model_config({"model_channels": 64})).state_dict()
    with pytest.raises(ValueError, match="does not fit LatentDiffusion"):
        export_diffusers({"model": config}, state, tmp_path / "out")
    assert not (tmp_path / "out").exists()
