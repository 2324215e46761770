"""The autoregressive model: how codes are chosen, what they depend on, and what training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import VQ, randomise
from torch import Tensor

from ldm.checkpoint import write_weights
from ldm.util import instantiate_from_config
from rdm.models.autoregression.sampling import autoregress, choose, seeded_gumbel
from rdm.models.autoregression.transformer import RetrievalAugmentedTransformer

NETWORK: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 8,
    "n_heads": 2,
    "d_head": 8,
    "depth": 2,
    "context_dim": 6,
    "positional_encodings": True,
    "sequence_length": 16,
    "causal": True,
    "continuous": False,
}


def make(**options: Any) -> RetrievalAugmentedTransformer:
    torch.manual_seed(0)
    network = {"target": "rdm.modules.attention.RetrievalPatchTransformer", "params": NETWORK}
    model = RetrievalAugmentedTransformer(network, **{"first_stage_config": VQ, "conditioner": {"k": 2}, **options})
    randomise(model.transformer)
    return model.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chances_of(logits: Tensor, n: int = 40_000, **options: Any) -> Tensor:
    """How often each code is chosen of n times: the distribution, with a standard deviation of at most 0.0025."""
    generator = torch.Generator().manual_seed(0)

    def noise(given: Tensor) -> Tensor:
        return -torch.empty_like(given).exponential_(generator=generator).log()

    return torch.bincount(choose(logits.expand(n, -1), noise, **options), minlength=logits.shape[-1]) / n


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_codes_are_drawn_from_the_softmax_at_a_temperature(temperature: float) -> None:
    logits = normal(9)
    expected = torch.softmax(logits / temperature, 0)
    torch.testing.assert_close(chances_of(logits, temperature=temperature), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("top_k", [1, 3, 9, 100])
def test_top_k_leaves_the_k_likeliest_in_their_proportions(top_k: int) -> None:
    logits = normal(9)
    kept = torch.zeros(9).index_fill(0, logits.topk(min(top_k, 9)).indices, 1.0) * logits.exp()
    torch.testing.assert_close(chances_of(logits, top_k=top_k), kept / kept.sum(), rtol=0, atol=0.01)
    assert (chances_of(logits, top_k=top_k) > 0).equal(kept > 0)
    assert (chances_of(torch.zeros(4), top_k=2) > 0).sum() == 2  # no more than k, whatever the ties


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 5])
def test_top_p_leaves_the_smallest_nucleus(top_p: float, top_k: int | None) -> None:
    logits = normal(9, seed=3)
    chances = torch.softmax(logits.double(), 0)
    order = sorted(range(9), key=lambda i: -chances[i])[:top_k]
    total, kept = sum(chances[i] for i in order), []
    for i in order:  # codes are taken while those before them have less than the share
        if sum(chances[j] for j in kept) >= top_p * total:
            break
        kept.append(i)
    expected = torch.zeros(9).index_fill(0, torch.tensor(kept), 1.0) * chances.float()
    got = chances_of(logits, top_p=top_p, top_k=top_k)
    assert set(got.nonzero().flatten().tolist()) <= set(kept)
    torch.testing.assert_close(got, expected / expected.sum(), rtol=0, atol=0.01)


def test_what_has_no_chance_is_not_chosen_and_zero_is_the_likeliest() -> None:
    logits = torch.tensor([[0.1, 3.0, -torch.inf, 2.0], [5.0, -torch.inf, 1.0, -torch.inf]])
    chosen = torch.stack([choose(logits, seeded_gumbel([seed, seed + 1])) for seed in range(300)])
    assert set(chosen[:, 0].tolist()) == {0, 1, 3} and set(chosen[:, 1].tolist()) == {0, 2}
    assert choose(logits, seeded_gumbel([0, 1]), temperature=0).tolist() == [1, 0]
    assert choose(logits, seeded_gumbel([0, 1]), temperature=1e-3).tolist() == [1, 0]


def test_a_sequence_follows_its_predictor_which_sees_each_code_once() -> None:
    seen = []

    def next_code(codes: Tensor) -> Tensor:
        seen.append(codes)
        return 50.0 * torch.nn.functional.one_hot((codes[:, -1] + 1) % 5, 5)

    found = autoregress(next_code, torch.tensor([[0, 3], [1, 1]]), 4, seeded_gumbel([0, 1]))
    assert found.tolist() == [[4, 0, 1, 2], [2, 3, 4, 0]]
    assert [codes.shape[1] for codes in seen] == [2, 1, 1, 1]


def test_noise_belongs_to_its_seed_and_has_gumbels_distribution() -> None:
    logits = torch.zeros(3, 20_000)
    together, alone = seeded_gumbel([5, 6, 7]), seeded_gumbel([6])
    first, second = together(logits), together(logits)
    assert torch.equal(alone(logits[:1])[0], first[1]) and torch.equal(alone(logits[:1])[0], second[1])
    assert not torch.equal(first[0], first[2]) and not torch.equal(first, second)
    assert float(first.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(first.var()) == pytest.approx(torch.pi**2 / 6, abs=0.05)


def uncached(model: RetrievalAugmentedTransformer, context: Tensor, seeds: list[int], **options: Any) -> Tensor:
    """Samples as the original does: every code from a pass over all codes before it."""
    codes, noise = model.start(len(seeds)), seeded_gumbel(seeds)
    for _ in range(16):
        logits = model.transformer(codes, context)[:, -1]
        codes = torch.cat([codes, choose(logits, noise, **options)[:, None]], dim=1)
    return codes[:, 1:]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
@torch.no_grad()
def test_what_is_kept_of_earlier_codes_changes_no_code(options: dict[str, Any]) -> None:
    model, context = make(), normal(5, 2, 6)
    got = model.sample_codes(context, 16, list(range(5)), **options)
    assert torch.equal(got, uncached(model, context, list(range(5)), **options))
    assert len({tuple(codes) for codes in got.tolist()}) > 3
    greedy = model.sample_codes(context, 16, list(range(5)), temperature=0.0)
    begun = model.sample_codes(context, 16, list(range(5)), begin=greedy[:, :7], temperature=0.0)
    assert torch.equal(begun, greedy)


def test_codes_depend_on_their_own_seed_and_context_alone() -> None:
    model, context = make(), normal(4, 2, 6)
    options: dict[str, Any] = {"scale": 1.5, "null": torch.zeros(1, 1, 1)}
    together = model.sample_codes(context, 16, [0, 1, 2, 3], **options)
    for i in range(4):
        assert torch.equal(model.sample_codes(context[i : i + 1], 16, [i], **options)[0], together[i])
    assert not torch.equal(model.sample_codes(context[1:2], 16, [2], **options)[0], together[1])
    assert not torch.equal(model.sample_codes(context[2:3], 16, [1], **options)[0], together[1])


@torch.no_grad()
def test_guidance_one_ignores_the_null_zero_the_context_and_parts_add_up() -> None:
    model, context, null = make(), normal(3, 2, 6), torch.zeros(3, 2, 6)
    tokens = torch.randint(8, (3, 5), generator=torch.Generator().manual_seed(0))

    def logits(*given: Any, **options: Any) -> Tensor:
        predict = model.predictor(*given, **options)
        return torch.stack([predict(part) for part in tokens.split(1, dim=1)], dim=1)

    seen, nothing = model.transformer(tokens, context), model.transformer(tokens, null)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits(context, 16), seen, **close)
    torch.testing.assert_close(logits(context, 16, null, 0.0), nothing, **close)
    torch.testing.assert_close(logits(context, 16, null, 3.0), nothing + 3 * (seen - nothing), **close)
    part = context[:, :1]
    some = model.transformer(tokens, part.expand(3, 2, 6))
    expected = nothing + 4 * (some - nothing) + 2 * (seen - some)
    torch.testing.assert_close(logits(context, 16, null, 2.0, parts=[(part.expand(3, 2, 6), 4.0)]), expected, **close)


@pytest.mark.parametrize("use_neighbours", [True, False])
def test_only_with_neighbours_does_the_loss_depend_on_them(use_neighbours: bool) -> None:
    model = make(use_neighbours=use_neighbours, p_uncond=0.0)
    image = normal(2, 3, 8, 8)
    losses = [
        model.training_step({"image": image, "neighbours": normal(2, 4, 6, seed=seed)}, 0).item() for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == use_neighbours


def test_codes_of_a_batch_stand_in_for_its_images_and_are_checked_once() -> None:
    model, image, neighbours = make(), normal(2, 3, 8, 8), normal(2, 2, 6)
    codes = model.to_codes(image)
    assert codes.shape == (2, 16) and codes.dtype == torch.int64
    batch = {"image": image, "neighbours": neighbours}
    expected = model.training_step(batch, 0)
    assert torch.equal(model.training_step({**batch, "codes": codes.short()}, 0), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.to_codes(image), codes)
    wrong = {**batch, "codes": (codes + 1) % 8}
    with pytest.raises(ValueError, match="0% .*codes"):
        model.on_train_batch_start(wrong, 0)
    model.on_train_batch_start({**batch, "codes": codes}, 0)
    model.on_train_batch_start(wrong, 1)  # a look at the first batch is enough


def test_codes_become_the_image_that_the_first_stage_makes_of_them() -> None:
    model, image = make(), normal(2, 3, 8, 8)
    restored = model.first_stage_model.decode(model.first_stage_model.encode(image))
    torch.testing.assert_close(model.to_image(model.to_codes(image), (4, 4)), restored)


def test_a_first_stage_trained_with_an_average_is_used_with_it(tmp_path: Path) -> None:
    config = {**VQ, "params": {**VQ["params"], "use_ema": True}}  # type: ignore[dict-item]
    stage = instantiate_from_config(config)
    averaged = {name: value.clone() for name, value in stage.named_parameters()}  # where the average begins
    randomise(stage)
    write_weights(tmp_path / "m.safetensors", stage.state_dict())
    config["params"]["ckpt_path"] = str(tmp_path / "m.safetensors")  # type: ignore[index]
    used = make(first_stage_config=config).first_stage_model
    assert "model_ema" not in {name.partition(".")[0] for name in used.state_dict()}
    assert [name for name, value in used.named_parameters() if not torch.equal(value, averaged[name])] == []


def test_matrices_decay_and_nothing_else_does() -> None:
    model = make(weight_decay=0.3)
    names = {id(p): name for name, p in model.transformer.named_parameters()}
    decaying, others = model.configure_optimizers()["optimizer"].param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    found = [{names[id(p)] for p in group["params"]} for group in (decaying, others)]
    assert found[0] | found[1] == set(names.values()) and not found[0] & found[1]
    kept = {"proj_in.weight", "positional_encoding"}
    assert found[1] == kept | {n for n in names.values() if ".norm" in n or n.endswith("bias")}
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())


def test_it_learns_what_only_the_neighbours_tell() -> None:
    """Every image's codes are one code, and its neighbours say which: with them there is nothing to guess."""
    model = make(p_uncond=0.2, learning_rate=1e-2, weight_decay=0.0).train()
    optimizer = model.configure_optimizers()["optimizer"]
    which = torch.arange(6).repeat(4)
    codes = which[:, None].expand(-1, 16)
    batch = {"codes": codes, "neighbours": torch.eye(6)[which][:, None].expand(-1, 2, -1)}
    for step in range(60):
        optimizer.zero_grad()
        model.training_step(batch, step).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        context = model.context(batch)
        informed, blind = model.loss(codes, context), model.loss(codes, model.null_context(context))
    assert informed < 0.3 * blind and blind > 0.8 * torch.tensor(6.0).log() / 16
    assert torch.equal(model.sample_codes(context[:6], 16, range(6), temperature=0.0), codes[:6])


def test_wrong_options_are_named() -> None:
    model, context = make(), normal(2, 2, 6)
    for options, message in (
        ({"temperature": -1.0}, "temperature: got -1.0, expected 0"),
        ({"top_k": 0}, "top_k: got 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p: got 0.0, expected a share above 0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"scale": 2.0}, "guidance scale is 2.0, expected 1 without a context and a null context"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample_codes(context, 16, [0, 1], **options)
    with pytest.raises(ValueError, match="3 seeds.*2 contexts"):
        model.sample_codes(context, 16, [0, 1, 2])
    with pytest.raises(ValueError, match="p_uncond.*1.0"):
        make(p_uncond=1.0)
