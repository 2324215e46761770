"""The configs of autoregressive models: what they build, and that model and data mean the same first stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.config import read_config
from ldm.util import instantiate_from_config

CONFIGS = Path(__file__).parents[3] / "configs"
EMOJI = [["rarm"], ["rarm", "rarm/emoji-plain"]]
CLASSES = {"dogs": [151, 281], "mammals": [147, 389], "animals": [0, 398]}  # CompVis' ranges, whose ends are in them


@pytest.mark.parametrize("names", [*EMOJI, *([f"rarm/{name}"] for name in CLASSES)])
def test_model_and_data_mean_the_same_first_stage(names: list[str]) -> None:
    config = read_config([CONFIGS / f"{name}.yaml" for name in names])
    params = config["model"]["params"]
    data = instantiate_from_config(config["data"])
    assert data.first_stage_config == params["first_stage_config"]
    assert data.k == params["conditioner"]["k"]
    network, first = params["transformer_config"]["params"], params["first_stage_config"]["params"]
    side = first["ddconfig"]["resolution"] // 2 ** (len(first["ddconfig"]["ch_mult"]) - 1)
    assert network["sequence_length"] == side**2 and network["out_channels"] == first["n_embed"]
    assert config["lightning"]["trainer"]["max_steps"] == params["scheduler_config"]["params"]["max_decay_steps"]
    if names[-1].removeprefix("rarm/") in CLASSES:
        for part in data.dataset_configs.values():
            assert part["params"]["classes"] == CLASSES[names[-1].removeprefix("rarm/")]


@pytest.mark.parametrize("names", EMOJI)
def test_the_emoji_model_and_its_baseline_are_of_one_size(names: list[str]) -> None:
    config = read_config([CONFIGS / f"{name}.yaml" for name in names])["model"]
    del config["params"]["first_stage_config"]["params"]["ckpt_path"]
    with torch.device("meta"):
        model = instantiate_from_config(config)
    assert model.use_neighbours == (len(names) == 1)
    assert sum(p.numel() for p in model.transformer.parameters()) == 5_851_648
    assert 2 * sum(p.numel() for p in model.parameters()) < 40e6  # bytes in float16
