"""Every released architecture builds from its own config, with the names and shapes of its checkpoint.

`layouts/*.json.gz` hold, for every config of CompVis' latent-diffusion and retrieval-augmented-diffusion-models, the
names, shapes and number of parameters of the original's modules. Everything is built on the meta device.
"""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import LAYOUTS_BUILT

from ldm.config import read_config
from ldm.util import instantiate_from_config

ROOT = Path(__file__).parents[1]
LAYOUTS = sorted((ROOT / "tests" / "layouts").glob("*.json.gz"))
LPIPS, SD_V1 = "taming__LPIPS", "stable_diffusion_v1_derived"
OURS = {"rdm/imagenet": "rdm__models__rdm__imagenet", "rdm/ffhq": "rdm__models__rdm__ffhq"}
OURS["rdm/768x768"] = "ldm__configs__retrieval-augmented-diffusion__768x768"
OURS |= {f"rarm/{name}": f"rdm__configs__rarm__{name}" for name in ("dogs", "mammals", "animals")}
# The layouts of the released files.
RELEASED = {
    **OURS,
    **{f"rarm/{name}": f"rdm__models__rarm__imagenet__{name}" for name in ("dogs", "mammals", "animals")},
}
# What a released checkpoint holds and ours need not: the direction of a null whose length is zero.
OPTIONAL = {"unconditional_guidance_vex"}


@cache
def layout(name: str) -> dict[str, Any]:
    """Returns a layout; `shapes` are its names with their shapes as tuples."""
    found = json.loads(gzip.decompress((ROOT / "tests" / "layouts" / f"{name}.json.gz").read_bytes()))
    found["shapes"] = {key: tuple(shape) for key, (shape, _) in found["state_dict"].items()}
    return found


def build(config: dict[str, Any]) -> torch.nn.Module:
    """Returns the module of a config, without memory for its weights."""
    with torch.device("meta"):
        module = instantiate_from_config(config)
    assert isinstance(module, torch.nn.Module)
    return module


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def differences(own: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Returns what is in one and not, or otherwise, in the other: the first of each kind tells enough."""
    both = own.keys() & expected.keys()
    return {
        "missing": sorted(expected.keys() - own.keys())[:5],
        "unexpected": sorted(own.keys() - expected.keys())[:5],
        "shape": [(name, own[name], expected[name]) for name in sorted(both) if own[name] != expected[name]][:5],
    }


@pytest.mark.parametrize("name", [path.name.removesuffix(".json.gz") for path in LAYOUTS])
def test_a_released_config_gives_the_names_and_shapes_of_its_checkpoint(name: str) -> None:
    found = layout(name)
    module = build(found["config"])
    types = {key: kind for key, (_, kind) in found["state_dict"].items()}
    own = {key: str(value.dtype).removeprefix("torch.") for key, value in module.state_dict().items()}
    assert {key: (kind, types[key]) for key, kind in own.items() if kind != types[key].removeprefix("torch.")} == {}
    if name != SD_V1:  # ours says so where the likelihood's scale is not trained; theirs only leaves it out
        frozen = 1 if found["config"]["target"].endswith("AutoencoderKL") else 0
        if found["config"]["target"].endswith("LatentImageRETRO"):  # likewise, of the first stage
            frozen = size(module.first_stage_model)  # type: ignore[arg-type]
        learned = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        assert learned == found["n_trainable"] - frozen
    if name == SD_V1:  # its text model is not one of ours
        texts = {key: shape for key, shape in found["shapes"].items() if key.startswith("cond_stage_model.")}
        kept = {key: shape for key, shape in found["shapes"].items() if key not in texts}
        found = {"shapes": kept, "n_params": found["n_params"] - sum(map(math.prod, texts.values()))}
    assert differences(shapes(module), found["shapes"]) == {"missing": [], "unexpected": [], "shape": []}
    assert size(module) == found["n_params"]
    LAYOUTS_BUILT.add(name)


@pytest.mark.parametrize("name", ["ldm__models__first_stage_models__kl-f4", "ldm__models__first_stage_models__vq-f8"])
def test_with_its_perceptual_loss_a_first_stage_has_all_names_of_a_released_file(name: str) -> None:
    """The layouts were recorded without LPIPS; its names are in a layout of its own."""
    found, lpips = layout(name), layout(LPIPS)
    config = json.loads(json.dumps(found["config"]))
    config["params"]["lossconfig"]["params"]["perceptual"] = {"target": lpips["config"]["target"]}
    module = build(config)
    expected = found["shapes"] | {f"loss.perceptual_loss.{key}": shape for key, shape in lpips["shapes"].items()}
    assert differences(shapes(module), expected) == {"missing": [], "unexpected": [], "shape": []}
    assert size(module) == found["n_params"] + lpips["n_params"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_config_of_a_release_describes_the_same_network(name: str) -> None:
    """In our own names, without what only training reads: paths of weights, and the data."""
    found = layout(OURS[name])
    config = read_config([ROOT / "configs" / f"{name}.yaml"])["model"]
    config["params"]["first_stage_config"]["params"].pop("ckpt_path", None)
    module = build(config)
    expected = {key: shape for key, shape in found["shapes"].items() if key not in OPTIONAL}
    assert differences(shapes(module), expected) == {"missing": [], "unexpected": [], "shape": []}
    assert size(module) == found["n_params"]


def test_a_place_for_a_released_first_stage_holds_the_config_it_was_trained_with() -> None:
    """A copy, as everything that loads a folder reads the config beside the weights."""
    names = [
        path.stem
        for path in (ROOT / "configs/first_stage").glob("*.yaml")
        if not path.stem.startswith(("emoji", "own", "photographs"))
    ]
    assert len(names) == 9
    for name in names:
        copy = ROOT / "models/first_stage" / name / "config.yaml"
        assert copy.read_bytes() == (ROOT / f"configs/first_stage/{name}.yaml").read_bytes(), name


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_place_for_a_released_model_holds_a_config_for_it(name: str) -> None:
    """That of training, but for the preprocessing of CompVis' databases, and the first stage in the file of a RARM."""
    expected, own = (read_config([ROOT / file]) for file in (f"configs/{name}.yaml", f"models/{name}/config.yaml"))
    assert own["data"]["params"]["embedder"]["params"].pop("preprocessing") == "compvis"
    if name.startswith("rarm/"):
        stage = expected["model"]["params"]["first_stage_config"]["params"]
        stage["embed_dim"] = stage["ddconfig"]["z_channels"] = 256
        expected["data"]["params"]["codes"]["first_stage"] = expected["model"]["params"]["first_stage_config"]
    assert own == expected
    found, config = layout(RELEASED[name]), own["model"]
    config["params"]["first_stage_config"]["params"].pop("ckpt_path", None)
    expected_shapes = {key: shape for key, shape in found["shapes"].items() if key not in OPTIONAL}
    assert differences(shapes(build(config)), expected_shapes) == {"missing": [], "unexpected": [], "shape": []}


def test_the_number_of_layouts_is_that_of_the_releases() -> None:
    assert len(LAYOUTS) == 45
