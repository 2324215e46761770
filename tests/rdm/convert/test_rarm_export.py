"""Exports of the autoregressive model for CompVis' code: their names and arguments, and the way back loses no bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import VQ, randomise
from test_checkpoint_names import layout

from ldm.checkpoint import read_weights
from ldm.config import read_config
from ldm.util import instantiate_from_config
from rdm.convert.compvis import export_model

NETWORK = {
    "target": "rdm.modules.attention.RetrievalPatchTransformer",
    "params": {
        "in_channels": 10, "out_channels": 8, "n_heads": 2, "d_head": 8, "context_dim": 6, "positional_encodings": True,
        "sequence_length": 16, "cross_attend": True, "causal": True, "continuous": False,
    },
}  # fmt: skip
OURS: dict[str, Any] = {
    "target": "rdm.models.autoregression.transformer.RetrievalAugmentedTransformer",
    "params": {
        "learning_rate": 2e-4,
        "weight_decay": 0.2,
        "seed": 3,
        "conditioner": {"k": 2, "normalize": True, "scale": 4.0},
        "p_mask_max": 0.1,
        "transformer_config": NETWORK,
        "first_stage_config": VQ,
    },
}


def test_it_has_their_target_and_arguments_only_and_comes_back_bit_equal(tmp_path: Path) -> None:
    original = instantiate_from_config(OURS).eval()
    randomise(original)
    state = original.state_dict()
    file = export_model(OURS, state, tmp_path)
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# For CompVis' code") and "vectors of length 4.0" in text.splitlines()[1]
    model = read_config([tmp_path / "config.yaml"])["model"]
    released = layout("rdm__configs__rarm__dogs")["config"]
    assert model["target"] == released["target"] and model["base_learning_rate"] == 2e-4
    assert model["params"].keys() == released["params"].keys() - {"retrieval_cfg"}
    assert (model["params"]["mask_token"], model["params"]["sos_token"]) == (8, 9)
    assert model["params"]["first_stage_config"]["target"] == "ldm.models.autoencoder.VQModel"
    assert torch.load(file, weights_only=True)["state_dict"].keys() == state.keys()
    back = instantiate_from_config({**model, "params": {**model["params"], "ckpt_path": str(file)}}).eval()
    assert [name for name, value in state.items() if not torch.equal(back.state_dict()[name], value)] == []
    image, context = torch.linspace(-1, 1, 384).view(2, 3, 8, 8), torch.linspace(-2, 2, 24).view(2, 2, 6)
    codes = original.to_codes(image)
    assert torch.equal(back.to_codes(image), codes)
    assert torch.equal(back(codes, context), original(codes, context))


def test_a_released_config_comes_out_as_it_is(tmp_path: Path) -> None:
    released = layout("rdm__configs__rarm__dogs")["config"]
    state = {"mask_token": torch.tensor([16384]), "sos_token": torch.tensor([16385])}
    file = export_model(released, state, tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]
    del released["params"]["retrieval_cfg"]
    assert got == released and read_weights(file).keys() == state.keys()


def test_a_model_without_neighbours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use_neighbours"):
        export_model({**OURS, "params": OURS["params"] | {"use_neighbours": False}}, {}, tmp_path)
