"""The released autoregressive model, shrunk, against numbers of the original; and CompVis' names for it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_cases import GoldenCase, load_golden

from ldm.checkpoint import write_weights
from ldm.models.diffusion.guidance import guide
from ldm.util import instantiate_from_config
from rdm.models.autoregression.transformer import LatentImageRETRO


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_golden("rarm_latentimageretro")


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> LatentImageRETRO:
    return case.build()


def batch_of(case: GoldenCase) -> dict[str, torch.Tensor]:
    return {"image": case.tensors["in.image"].movedim(-1, 1), "nn_embeddings": case.tensors["in.nn_embeddings"]}


@torch.no_grad()
def test_codes_context_logits_and_loss(case: GoldenCase, model: LatentImageRETRO) -> None:
    batch = batch_of(case)
    codes, context = model.batch_codes(batch), model.context(batch)
    case.check("x", batch["image"])
    case.check("target", codes)
    case.check("r", context)
    case.check("cond_tokens", model.start(2))
    case.check("logits", model(codes, context))
    case.check("shared_step_logits", model(model.batch_codes({**batch, "codes": codes.short()}), context))
    case.check("loss", model.loss(codes, context))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@torch.no_grad()
def test_greedy_and_half_greedy_samples(case: GoldenCase, model: LatentImageRETRO, scale: float) -> None:
    codes, context = case.tensors["out.target"], case.tensors["out.r"]
    options: dict[str, Any] = {"scale": scale, "null": model.null_context(context)}
    for name, greedy in (
        ("topk1", {"temperature": 0.0}),
        ("topkNone", {"top_p": 1e-9}),
        ("multinomial_topk1", {"top_k": 1}),
    ):
        found = model.sample_codes(context, 16, [3, 4], **options, **greedy)
        case.check(f"sample_g{scale}_{name}", found)
    case.check(f"decoded_g{scale}", model.to_image(found, (4, 4)))
    half = model.sample_codes(context, 16, [3, 4], begin=codes[:, :8], temperature=0.0, **options)
    case.check(f"half_sample_g{scale}", half)
    tokens = torch.cat([model.start(2), found[:, :-1]], dim=1)
    project = model.transformer.project_context
    guided = guide(lambda x, t, c: model.transformer(x, c), context, options["null"], scale, project=project)  # noqa: ARG005
    case.check(f"guided_logits_g{scale}", guided(tokens, tokens[:, 0]))


def test_names_and_special_tokens_are_those_of_checkpoints(
    case: GoldenCase, model: LatentImageRETRO, tmp_path: Path
) -> None:
    config = json.loads(json.dumps(case.card["config"]))
    config["params"] |= {"sos_token": 32, "mask_token": 33}
    other = instantiate_from_config(config)
    assert (other.sos_token.item(), other.mask_token.item()) == (32, 33)
    state = other.state_dict() | {"sos_token": torch.tensor([33])}
    write_weights(tmp_path / "m.safetensors", state)
    config["params"]["ckpt_path"] = str(tmp_path / "m.safetensors")
    loaded = instantiate_from_config(config)
    assert loaded.sos_token.item() == 33 and loaded.mask_token.item() == 33
    assert [name for name, value in loaded.state_dict().items() if not torch.equal(value, state[name])] == []
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())


def test_masked_numbers_of_a_context_become_that_of_the_mask_token(case: GoldenCase) -> None:
    config = json.loads(json.dumps(case.card["config"]))
    config["params"]["p_mask_max"] = 0.8
    model = instantiate_from_config(config)
    context = torch.rand(400, 4, 16, generator=torch.Generator().manual_seed(0))
    shares = []
    for seed in range(40):
        masked = model.mask_context(context, torch.Generator().manual_seed(seed))
        changed = masked != context
        assert (masked[changed] == 32).all()
        shares.append(changed.float().mean())
    assert 0.3 < torch.stack(shares).mean() < 0.5 and 0.6 < max(shares) <= 0.81 and min(shares) < 0.2


def test_what_no_release_has_is_refused(case: GoldenCase, caplog: pytest.LogCaptureFixture) -> None:
    config = case.card["config"]
    for wrong, message in [
        ({"nn_encoder_cfg": {"target": "torch.nn.Linear"}}, "nn_encoder_cfg: got torch.nn.Linear, expected torch.nn.I"),
        ({"nn_reshaper_cfg": {"target": "torch.nn.Linear"}}, "nn_reshaper_cfg: got torch.nn.Linear"),
        ({"permuter_config": {"target": "taming.x.Random"}}, "permuter_config: got taming.x.Random"),
        ({"cond_stage_config": {"target": "torch.nn.Identity"}}, "cond_stage_config: got"),
        ({"pkeep": 0.9}, "pkeep: got 0.9, expected 1"),
        ({"sos_token": 34}, "got token 34, expected one of 34"),
        ({"p_mask_max": 1.5}, "p_mask_max: got 1.5, expected a probability"),
        ({"retro_concat": True}, "LatentImageRETRO has no parameter 'retro_concat'"),
    ]:
        with pytest.raises(ValueError, match=message):
            instantiate_from_config({**config, "params": config["params"] | wrong})
    network = config["params"]["transformer_config"]
    other = {**network, "params": network["params"] | {"out_channels": 31}}
    with pytest.raises(ValueError, match="out_channels=31, in_channels=34.* 32 codes"):
        instantiate_from_config({**config, "params": config["params"] | {"transformer_config": other}})
    with caplog.at_level(logging.WARNING):
        instantiate_from_config({**config, "params": config["params"] | {"nn_memory": "memory.p"}})
    assert "nn_memory" in caplog.text


def test_the_loss_is_cross_entropy_of_the_next_code(case: GoldenCase, model: LatentImageRETRO) -> None:
    codes, context = case.tensors["out.target"], case.tensors["out.r"]
    logits = case.tensors["out.logits"]
    expected = -F.log_softmax(logits, -1).gather(-1, codes[..., None]).mean()
    torch.testing.assert_close(model.loss(codes, context), expected, rtol=1e-4, atol=1e-4)
