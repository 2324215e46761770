"""The configs of the first stages build what CompVis released, and what the emoji pictures need."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint_names import layout

from ldm.config import read_config
from ldm.models.autoencoder import AutoencoderKL, VQModel
from ldm.util import check_params, get_obj_from_str, instantiate_from_config

CONFIGS = Path(__file__).parents[3] / "configs" / "first_stage"
RELEASED = ("vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16", "kl-f4", "kl-f8", "kl-f16", "kl-f32")
SMALL = ("emoji-vq-f4", "emoji-kl-f4", "photographs-vq-f4")


def released(name: str) -> dict[str, Any]:
    """Returns the layout of a released first stage: its config, names and number of parameters."""
    return layout(f"ldm__models__first_stage_models__{name}")


def build(name: str) -> VQModel | AutoencoderKL:
    config = read_config([str(CONFIGS / f"{name}.yaml")])
    config["model"]["params"]["lossconfig"]["params"].pop("perceptual", None)  # its weights are not part of the stage
    with torch.device("meta"):
        return instantiate_from_config(config["model"])


@pytest.mark.parametrize("name", RELEASED)
def test_released_architectures_are_built(name: str) -> None:
    model, theirs = build(name), released(name)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == theirs["shapes"]
    assert sum(p.numel() for p in model.parameters()) == theirs["n_params"]
    assert model.downsampling == int(name.split("-")[1].removeprefix("f")) and hasattr(model.loss, "generator")


@pytest.mark.parametrize("name", RELEASED)
def test_released_settings_of_training_are_kept(name: str) -> None:
    """All of them but the spelling of the loss, what it says of our defaults, and what stands for LPIPS."""
    theirs, ours = released(name)["config"], read_config([str(CONFIGS / f"{name}.yaml")])["model"]
    assert ours["base_learning_rate"] == theirs["base_learning_rate"]
    wanted = {"monitor": "val/rec_loss", **theirs["params"]}
    loss, other = ours["params"].pop("lossconfig"), wanted.pop("lossconfig")
    assert ours["params"] == wanted and ours["target"] == theirs["target"]
    assert get_obj_from_str(loss["target"]) is get_obj_from_str(other["target"])
    given = {"disc_in_channels": 3, "disc_conditional": False, **loss["params"]}
    del given["perceptual"]
    assert given == {"disc_in_channels": 3, "disc_conditional": False, **other["params"]}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_compare_by_lpips_and_name_what_stands_in(name: str) -> None:
    config = read_config([str(CONFIGS / f"{name}.yaml")])["model"]["params"]["lossconfig"]["params"]
    targets = [choice["target"].rpartition(".")[2] for choice in config["perceptual"]]
    assert targets == ["LPIPS", "ClipDistance", "ClipDistance"]
    for choice in config["perceptual"]:
        check_params(choice["target"], get_obj_from_str(choice["target"]), choice["params"])


def test_every_config_is_named_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*RELEASED, *SMALL, "own"}


@pytest.mark.parametrize("name", SMALL)
def test_small_stages_share_their_networks(name: str) -> None:
    model = build(name)
    assert model.downsampling == 4 and model.post_quant_conv.in_channels == 3
    networks = {n: p for n, p in model.named_parameters() if n.startswith(("encoder.", "decoder."))}
    assert 2_500_000 < sum(p.numel() for p in networks.values()) < 2_700_000
