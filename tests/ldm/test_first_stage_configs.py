"""The configs of the first stages build what CompVis released, and what the emoji pictures need."""

from pathlib import Path

import pytest
import torch

from ldm.config import read_config
from ldm.models.autoencoder import AutoencoderKL, VQModel
from ldm.util import check_params, get_obj_from_str, instantiate_from_config

CONFIGS = Path(__file__).parents[2] / "configs" / "first_stage"
# Numbers of parameters and of state names, the perceptual network aside, of the released checkpoints.
RELEASED = [
    ("vq-f4", 58_088_415, 227),
    ("vq-f4-noattn", 55_985_119, 207),
    ("vq-f8", 68_380_656, 315),
    ("vq-f8-n256", 70_418_416, 321),
    ("vq-f16", 70_256_732, 359),
    ("kl-f4", 58_077_697, 227),
    ("kl-f8", 86_419_497, 271),
    ("kl-f16", 72_376_597, 365),
    ("kl-f32", 106_645_765, 459),
]


def build(name: str) -> VQModel | AutoencoderKL:
    config = read_config([str(CONFIGS / f"{name}.yaml")])
    config["model"]["params"]["lossconfig"]["params"].pop("perceptual", None)  # its weights are not part of the stage
    with torch.device("meta"):
        return instantiate_from_config(config["model"])


@pytest.mark.parametrize(("name", "parameters", "names"), RELEASED)
def test_released_architectures_are_built(name: str, parameters: int, names: int) -> None:
    model = build(name)
    assert sum(p.numel() for p in model.parameters()) == parameters and len(model.state_dict()) == names
    assert model.downsampling == int(name.split("-")[1].removeprefix("f"))
    assert hasattr(model.loss, "generator") and ("loss.logvar" in model.state_dict()) == name.startswith("kl")


@pytest.mark.parametrize("name", [name for name, *_ in RELEASED])
def test_released_configs_compare_by_lpips_and_name_what_stands_in(name: str) -> None:
    config = read_config([str(CONFIGS / f"{name}.yaml")])["model"]["params"]["lossconfig"]["params"]
    targets = [choice["target"].rpartition(".")[2] for choice in config["perceptual"]]
    assert targets == ["LPIPS", "ClipDistance", "ClipDistance"]
    for choice in config["perceptual"]:
        check_params(choice["target"], get_obj_from_str(choice["target"]), choice["params"])


def test_every_config_is_named_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {name for name, *_ in RELEASED} | {
        "emoji-vq-f4",
        "emoji-kl-f4",
    }


@pytest.mark.parametrize("name", ["emoji-vq-f4", "emoji-kl-f4"])
def test_emoji_stages_share_their_networks(name: str) -> None:
    model = build(name)
    assert model.downsampling == 4 and model.post_quant_conv.in_channels == 3
    networks = {n: p for n, p in model.named_parameters() if n.startswith(("encoder.", "decoder."))}
    assert 2_500_000 < sum(p.numel() for p in networks.values()) < 2_700_000
