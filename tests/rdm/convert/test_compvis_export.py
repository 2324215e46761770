"""Exports for CompVis' code: its names and arguments only, and the way back through our doors loses no bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import RDM as OURS
from small_models import VQ, randomise, unet
from small_models import trained_rdm as trained
from test_checkpoint_names import LAYOUTS, LPIPS, layout
from test_checkpoint_names import OURS as LAYOUT_OF

from ldm.checkpoint import choose_weights, read_weights, write_weights
from ldm.config import read_config, write_config
from ldm.convert.compvis import ENCODERS, compvis_model
from ldm.convert.diffusers import export_diffusers
from ldm.run import read_run
from ldm.util import instantiate_from_config
from rdm.compat import RETRIEVAL_ARGUMENTS, UNET_TARGET
from rdm.convert.compvis import export_model

ROOT = Path(__file__).parents[3]
RELEASED = [
    name
    for name in (path.name.removesuffix(".json.gz") for path in LAYOUTS)
    if name != LPIPS and "transformer_config" not in layout(name)["config"]["params"]  # see test_rarm_export.py
]
# What CompVis' MinimalRETRODiffusion, LatentDiffusion and DDPM take of it.
THEIR_PARAMS = {
    "k_nn": 2,
    "query_key": "clip_img_emb",
    "nn_key": "nn_embeddings",
    "retrieval_encoder_cfg": {"target": "torch.nn.Identity"},
    "p_uncond": 0.0,
    "cond_stage_key": "nixda",
    "cond_stage_config": "__is_unconditional__",
    "conditioning_key": "retro_only",
    "timesteps": 10,
    "linear_start": 0.0015,
    "scale_by_std": True,
    "guidance_vex_shape": [8],
    "image_size": 4,
    "channels": 3,
}


def test_an_rdm_has_their_target_and_arguments_only_and_comes_back_bit_equal(tmp_path: Path) -> None:
    original = trained()
    state = original.state_dict()
    file = export_model(OURS, choose_weights(state, "both"), tmp_path)
    described = read_config([tmp_path / "config.yaml"])
    assert list(described) == ["model"]
    model = described["model"]
    assert model["target"] == "rdm.models.diffusion.ddpm.MinimalRETRODiffusion"
    assert model["base_learning_rate"] == 2.0e-4
    params = dict(model["params"])
    assert params.pop("unet_config") == {**unet(context_dim=8), "target": UNET_TARGET}
    assert params.pop("first_stage_config") == {
        "target": "ldm.models.autoencoder.VQModelInterface",
        "params": {**VQ["params"], "lossconfig": {"target": "torch.nn.Identity"}},  # type: ignore[dict-item]
    }
    assert params.pop("use_ema") is True
    assert params == THEIR_PARAMS
    content = torch.load(file, weights_only=True)
    assert list(content) == ["state_dict", "global_step"]  # their scripts/sample_diffusion.py reads both
    direction = content["state_dict"].pop("unconditional_guidance_vex")
    assert direction.shape == (8,) and float(direction.norm()) > 0
    assert content["state_dict"].keys() == state.keys()
    # Through the door of their name, as their code would load it.
    back = instantiate_from_config({**model, "params": {**model["params"], "ckpt_path": str(file)}}).state_dict()
    assert torch.equal(back.pop("unconditional_guidance_vex"), direction)
    assert back.keys() == state.keys()
    assert [name for name in state if not torch.equal(back[name], state[name])] == []
    again = instantiate_from_config({**model, "params": {**model["params"], "ckpt_path": str(file)}}).eval()
    assert torch.equal(predicted(again), predicted(original.eval()))
    assert torch.equal(again.to_image(torch.ones(1, 3, 4, 4)), original.to_image(torch.ones(1, 3, 4, 4)))


@torch.no_grad()
def predicted(model: Any) -> torch.Tensor:
    """Returns what the averaged U-Net gives for fixed numbers."""
    x, context = torch.linspace(-1, 1, 96).view(2, 3, 4, 4), torch.linspace(-2, 2, 32).view(2, 2, 8)
    with model.ema_scope():
        return model.model(x, torch.tensor([1, 7]), context if model.model.conditioning_key else None)


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_config_comes_out_as_it_is(name: str) -> None:
    """But for the loss, which is left behind with its weights, and what CompVis' code does not read or assumes."""
    released = layout(name)["config"]
    theirs = json.loads(json.dumps(released["params"]))
    for part in (theirs, theirs.get("first_stage_config", {}).get("params", {})):
        if "lossconfig" in part:
            part["lossconfig"] = {"target": "torch.nn.Identity"}
    averaged = "unet_config" in theirs and theirs.setdefault("use_ema", True)
    theirs.pop("ignore_keys", None)
    arguments = RETRIEVAL_ARGUMENTS if released["target"].startswith("rdm.") else ()
    got = compvis_model(released, averaged, arguments)
    assert got["target"] == released["target"] and got["params"] == theirs


def test_the_config_says_what_their_code_cannot(tmp_path: Path) -> None:
    export_model(OURS, trained().state_dict(), tmp_path)
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# For CompVis' code") and "vectors of length 4.0" in text.splitlines()[1]


def step_of_theirs(params: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the context of a step of their training for 3 pictures, whose neighbours are ones."""
    context, stored = torch.ones(3, params["k_nn"], 8), state["unconditional_guidance_vex"]
    assert list(stored.shape) == params["guidance_vex_shape"]
    if params["p_uncond"] > 0:
        dropped = torch.tensor([True, False, True])[:, None, None]
        context = torch.where(dropped, torch.stack([stored] * 3), context)
    return context


def test_their_code_trains_on_the_export(tmp_path: Path) -> None:
    """As it is, without dropped contexts; and with them, as its notes say."""
    described = {**OURS, "params": {**OURS["params"], "conditioner": {"k": 4}}}
    file = export_model(described, choose_weights(trained().state_dict(), "average"), tmp_path)
    params, state = read_config([tmp_path / "config.yaml"])["model"]["params"], read_weights(file)
    assert step_of_theirs(params, state).shape == (3, 4, 8)
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("config.yaml", "README.md")]
    for text in texts:
        assert "set p_uncond: 0.2 and guidance_vex_shape: [4, 8]" in text and "1e-6 * torch.ones(4, 8)" in text
        assert "model_ema" in text and "--weights both" in text
    params = {**params, "p_uncond": 0.2, "guidance_vex_shape": [4, 8]}
    context = step_of_theirs(params, {"unconditional_guidance_vex": 1e-6 * torch.ones(4, 8)})
    assert context[0].abs().max() < 1e-5 and torch.equal(context[1], torch.ones(4, 8))
    export_model(described, choose_weights(trained().state_dict(), "both"), tmp_path)
    assert "model_ema" not in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["average", "raw"])
def test_one_set_of_weights_switches_their_average_off(which: str, tmp_path: Path) -> None:
    """Else their code would sample with an average that is the untrained weights."""
    model = trained()
    export_model(OURS, choose_weights(model.state_dict(), which), tmp_path)
    assert read_config([tmp_path / "config.yaml"])["model"]["params"]["use_ema"] is False
    got = read_weights(tmp_path / "model.ckpt")
    assert not [name for name in got if name.startswith("model_ema.")]
    name = "model.diffusion_model.input_blocks.0.0.weight"
    average = model.state_dict()["model_ema.diffusion_modelinput_blocks00weight"]
    expected = average if which == "average" else model.state_dict()[name]
    assert torch.equal(got[name], expected) and not torch.equal(average, model.state_dict()[name])


def test_a_stored_direction_is_kept_and_one_of_length_zero_replaced(tmp_path: Path) -> None:
    state = trained().state_dict()
    stored = torch.arange(8.0)
    export_model(OURS, {**state, "unconditional_guidance_vex": stored}, tmp_path)
    assert torch.equal(read_weights(tmp_path / "model.ckpt")["unconditional_guidance_vex"], stored)
    export_model(OURS, {**state, "unconditional_guidance_vex": torch.zeros(8)}, tmp_path)
    assert torch.equal(read_weights(tmp_path / "model.ckpt")["unconditional_guidance_vex"], torch.ones(8))


@pytest.mark.parametrize("name", ["imagenet", "ffhq"])
def test_our_config_of_a_release_becomes_theirs_again(name: str, tmp_path: Path) -> None:
    released = layout(LAYOUT_OF[f"rdm/{name}"])["config"]
    export_model(read_config([ROOT / "configs" / "rdm" / f"{name}.yaml"])["model"], {}, tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]
    assert got["target"] == released["target"]
    # Theirs says more than it has to; ours trains the null, and tells that there is no average.
    different = {key for key, value in got["params"].items() if released["params"].get(key) != value}
    assert different <= {"use_ema", "p_uncond", "guidance_vex_shape", "unet_config"}
    assert got["params"]["unet_config"]["target"] == released["params"]["unet_config"]["target"]
    theirs = released["params"]["unet_config"]["params"]
    own = got["params"]["unet_config"]["params"]
    assert {key: value for key, value in theirs.items() if own.get(key) != value and value is not False} == {}
    assert {key: value for key, value in own.items() if theirs.get(key) != value} == {}


def test_a_list_of_one_context_and_what_their_network_lacks(tmp_path: Path) -> None:
    network = unet(context_dim=8)
    params = {**OURS["params"], "unet_config": network}  # type: ignore[dict-item]
    network["params"] |= {"context_dim": [8], "legacy": False}
    export_model({**OURS, "params": params}, {}, tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]["params"]
    assert got["guidance_vex_shape"] == [8] and "legacy" not in got["unet_config"]["params"]
    network["params"]["n_embed"] = 5
    with pytest.raises(ValueError, match="n_embed is 5"):
        export_model({**OURS, "params": params}, {}, tmp_path)
    params["unet_config"] = {**network, "target": UNET_TARGET}  # under their rules already
    export_model({**OURS, "params": params}, {}, tmp_path)
    assert read_config([tmp_path / "config.yaml"])["model"]["params"]["unet_config"]["params"]["n_embed"] == 5
    with pytest.raises(ValueError, match="use_neighbours"):
        export_model({**OURS, "params": {**params, "use_neighbours": False}}, {}, tmp_path)


def test_a_network_under_the_rules_of_rdm_is_written_for_latent_diffusion(tmp_path: Path) -> None:
    """Their class has other rules: what has no effect here is left out, and what is another network is refused."""
    params = {"image_size": 4, "in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1}
    params |= {"attention_resolutions": [1], "channel_mult": [1], "num_heads": 4, "num_heads_upsample": 2}
    network = {"target": UNET_TARGET, "params": params}
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    described = {"target": target, "params": {"unet_config": network, "first_stage_config": VQ, "use_ema": False}}
    model = instantiate_from_config(described).eval()
    randomise(model)
    file = export_model(described, model.state_dict(), tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]
    assert got["params"]["unet_config"]["target"] == "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    assert "num_heads_upsample" not in got["params"]["unet_config"]["params"]
    back = instantiate_from_config({**got, "params": {**got["params"], "ckpt_path": str(file)}}).eval()
    assert torch.equal(predicted(back), predicted(model))
    params["n_embed"] = 5
    with pytest.raises(ValueError, match="n_embed is 5"):
        export_model(described, {}, tmp_path)


def test_a_model_without_retrieval_and_a_first_stage(tmp_path: Path) -> None:
    params = {"unet_config": unet(), "first_stage_config": VQ, "seed": 1, "scale_factor": 0.5, "timesteps": 10}
    described = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    model = instantiate_from_config(described)
    export_model(described, choose_weights(model.state_dict(), "average"), tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]
    assert got["params"]["cond_stage_config"] == "__is_unconditional__"
    assert "seed" not in got["params"] and got["params"]["scale_factor"] == 0.5
    back = instantiate_from_config({**got, "params": {**got["params"], "ckpt_path": str(tmp_path / "model.ckpt")}})
    expected = choose_weights(model.state_dict(), "average")
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    assert torch.equal(predicted(back.eval()), predicted(model.eval()))
    vq = instantiate_from_config(VQ)
    export_model(VQ, {**vq.state_dict(), "loss.logvar": torch.zeros(())}, tmp_path / "vq")
    assert read_weights(tmp_path / "vq" / "model.ckpt").keys() == vq.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameterization": "v"}, "parameterization is 'v', expected eps or x0"),
        ({"cond_stage_config": {"target": "ldm.modules.encoders.modules.OpenClipEmbedder"}}, "cond_stage_config: got"),
        ({"first_stage_config": {"target": "torch.nn.Identity"}}, "first_stage_config: got torch.nn.Identity"),
        ({"given_betas": [0.1, 0.2]}, "given_betas: got a list, expected the name of a beta_schedule"),
        (
            {"unet_config": {**unet(8), "params": {**unet(8)["params"], "context_dim": [8, 8]}}},
            r"context_dim is \[8, 8\]",
        ),
        (
            {
                "cond_stage_config": {
                    "target": f"{ENCODERS}FrozenCLIPTextEmbedder",
                    "params": {"version": "models/clip"},
                }
            },
            "got CLIP models/clip, expected one of OpenAI's",
        ),
    ],
)
def test_what_their_code_lacks_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    params = {"unet_config": unet(), "first_stage_config": VQ, **change}
    with pytest.raises(ValueError, match=message):
        compvis_model({"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}, False)


def test_conditions_and_contexts_are_written_in_their_arguments_only(tmp_path: Path) -> None:
    target, encoder = "ldm.models.diffusion.ddpm.LatentDiffusion", {"n_embed": 8, "n_layer": 1}
    condition = {"target": f"{ENCODERS}BERTEmbedder", "params": {**encoder, "tokenizer": "vocabulary"}}
    network = {**unet(8), "params": {**unet(8)["params"], "context_dim": [8]}}
    params = {"unet_config": network, "first_stage_config": VQ, "cond_stage_config": condition}
    got = compvis_model({"target": target, "params": params}, False)["params"]
    assert got["cond_stage_config"] == {"target": f"{ENCODERS}BERTEmbedder", "params": encoder}
    assert got["unet_config"]["params"]["context_dim"] == 8
    state = {"cond_stage_model.embedder.clip.weight": torch.ones(1), "cond_stage_model.other": torch.ones(1)}
    clip = {"target": f"{ENCODERS}FrozenCLIPTextEmbedder", "params": {"version": "ViT-B/32", "pretrained": "openai"}}
    export_model({"target": target, "params": {**params, "cond_stage_config": clip}}, state, tmp_path)
    assert list(read_weights(tmp_path / "model.ckpt")) == ["cond_stage_model.other"]
    written = read_config([tmp_path / "config.yaml"])["model"]["params"]["cond_stage_config"]["params"]
    assert written == {"version": "ViT-B/32"}
    pixel = {"target": "ldm.models.diffusion.ddpm.DDPM", "params": {"unet_config": unet(), "image_size": 8}}
    got = compvis_model(pixel, True)["params"]
    assert set(got) == {"unet_config", "timesteps", "image_size", "channels", "use_ema"}
    assert got["timesteps"] == len(instantiate_from_config({**pixel, "params": {"unet_config": unet()}}).betas)


def test_tokens_that_are_given_as_they_are_are_not_taken_away_by_the_word_for_no_condition(tmp_path: Path) -> None:
    """With it, their model and ours look at no context at all."""
    params = {"unet_config": unet(8), "first_stage_config": VQ, "conditioning_key": "crossattn", "use_ema": False}
    described = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    model = instantiate_from_config(described)
    randomise(model)
    file = export_model(described, model.state_dict(), tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]
    assert got["params"]["cond_stage_config"] == {"target": "torch.nn.Identity"}
    back = instantiate_from_config({**got, "params": {**got["params"], "ckpt_path": str(file)}})
    assert torch.equal(predicted(back.eval()), predicted(model.eval()))


def test_where_their_database_lies_is_kept() -> None:
    """Their script reads it from the config of the model."""
    released = layout(LAYOUT_OF["rdm/imagenet"])["config"]
    places = {
        "retrieval_cfg": {"target": "rdm.modules.retrievers.ClipImageRetriever", "params": {"gpu": False}},
        "nn_memory": "models/rdm/imagenet/nn_memory.p",
        "searcher_path": "searcher",
    }
    given = {**released, "params": {**released["params"], **places}}
    got = compvis_model(given, True, RETRIEVAL_ARGUMENTS)["params"]
    assert {name: got[name] for name in places} == places


def test_reference_latents_are_not_lost_without_a_word(tmp_path: Path) -> None:
    network = {"target": "rdm.modules.diffusionmodules.references.ReferenceUNetModel", "params": unet(8)["params"]}
    params = {"unet_config": network, "first_stage_config": VQ}
    with pytest.raises(ValueError, match=r"unet_config.*ReferenceUNetModel.*without further parts"):
        export_model({"target": OURS["target"], "params": params}, {}, tmp_path / "out")
    with pytest.raises(ValueError, match="references are given, expected none"):
        export_model({"target": OURS["target"], "params": {**params, "references": {}}}, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [OURS["target"], "ldm.models.diffusion.ddpm.LatentDiffusion"])
def test_another_network_is_not_passed_off_as_theirs(target: str, tmp_path: Path) -> None:
    network = {"target": "torch.nn.Identity", "params": unet(8)["params"]}
    params = {"unet_config": network, "first_stage_config": VQ}
    with pytest.raises(ValueError, match=r"unet_config.*torch.nn.Identity"):
        export_model({"target": target, "params": params}, {}, tmp_path)


@pytest.mark.parametrize("kind", ["ema", "cosine", "simvq"])
def test_codes_learned_in_other_ways_become_the_codes_they_make(kind: str, tmp_path: Path) -> None:
    stage = {**VQ, "params": {**VQ["params"], "codebook": {"kind": kind}}}  # type: ignore[dict-item]
    params = {"unet_config": unet(), "first_stage_config": stage, "use_ema": False}
    described = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    model = instantiate_from_config(described).eval()
    randomise(model)
    file = export_model(described, model.state_dict(), tmp_path)
    got = read_config([tmp_path / "config.yaml"])["model"]
    assert "codebook" not in got["params"]["first_stage_config"]["params"]
    back = instantiate_from_config({**got, "params": {**got["params"], "ckpt_path": str(file)}}).eval()
    latent = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, found = (m.first_stage_model.nearest_codes(latent) for m in (model, back))
    assert torch.equal(found[2], expected[2]) and len(expected[2].unique()) > 2
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(back.to_image(latent), model.to_image(latent))


def test_both_weights_want_an_average() -> None:
    with pytest.raises(ValueError, match="both.*no running average"):
        choose_weights({"model.weight": torch.ones(1)}, "both")
    with pytest.raises(ValueError, match="'ema'.*average, raw or both"):
        choose_weights({}, "ema")


def test_a_folder_without_config_or_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config.yaml in"):
        read_run(tmp_path)
    write_config(tmp_path / "config.yaml", {"model": VQ})
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last.ckpt"):
        read_run(tmp_path)


def test_a_folder_of_float16_weights_becomes_float32_for_their_code(tmp_path: Path) -> None:
    state = choose_weights(trained().state_dict(), "average")
    write_config(tmp_path / "config.yaml", {"model": OURS})
    write_weights(tmp_path / "model.safetensors", {n: t.half() if "." in n else t for n, t in state.items()})
    config, half = read_run(tmp_path)
    export_model(config["model"], half, tmp_path / "c")
    got = read_weights(tmp_path / "c" / "model.ckpt")
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    assert torch.equal(got["model.diffusion_model.out.2.weight"].half(), half["model.diffusion_model.out.2.weight"])


def test_grids_of_tokens_are_not_lost_without_a_word(tmp_path: Path) -> None:
    conditioner = {"k": 2, "tokens": "grid", "grid": 2, "token_width": 5}
    params = {"unet_config": unet(8), "first_stage_config": VQ, "conditioner": conditioner}
    with pytest.raises(ValueError, match=r"conditioner\.tokens is grid, expected pooled; CompVis"):
        export_model({"target": OURS["target"], "params": params}, {}, tmp_path / "out")
    model = {"target": OURS["target"], "params": {**params, "use_ema": False}}
    state = instantiate_from_config(model).state_dict()
    with pytest.raises(ValueError, match="the model has grid_tokens beside its U-Net, expected none"):
        export_diffusers({"model": model}, state, tmp_path / "out")
    assert not (tmp_path / "out").exists()
