"""The transformer over codes against numbers of the original, and the laws of what may see what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import load_golden
from small_models import randomise

from rdm.modules.attention import Past, RetrievalPatchTransformer

CAUSAL: dict[str, Any] = {
    "in_channels": 34,
    "out_channels": 32,
    "n_heads": 2,
    "d_head": 8,
    "depth": 2,
    "positional_encodings": True,
    "sequence_length": 12,
    "causal": True,
    "continuous": False,
}


def make(**options: Any) -> RetrievalPatchTransformer:
    torch.manual_seed(0)
    made = RetrievalPatchTransformer(**CAUSAL | options)
    randomise(made)
    return made.eval()


def codes(batch: int = 2, n: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(34, (batch, n), generator=torch.Generator().manual_seed(seed))


def context(batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["rpt_causal_discrete", "rpt_continuous_residual"])
def test_numbers_and_gradients_are_the_originals(name: str) -> None:
    case = load_golden(name)
    network = case.build()
    x, seen = case.tensors["in.x"], case.tensors.get("in.context")
    y = network(x, context=seen)
    case.check("y", y)
    if "prefix" in case.card["options"]:
        case.check("y_prefix", network(x[:, : case.card["options"]["prefix"]], context=seen))
    y.square().mean().backward()
    parameters = dict(network.named_parameters())
    norms = [parameters[key].grad for key in case.card["param_order_for_grad_norms"]]
    case.check("grad_norms", torch.stack([torch.zeros(()) if g is None else g.norm() for g in norms]), "grad")


@pytest.mark.parametrize("context_dim", [6, None])
@pytest.mark.parametrize("place", [0, 5, 11])
def test_no_token_is_seen_before_its_place(place: int, context_dim: int | None) -> None:
    network, x = make(context_dim=context_dim), codes()
    seen = context() if context_dim else None
    changed = x.clone()
    changed[:, place] = (changed[:, place] + 1) % 34
    before, after = network(x, seen), network(changed, seen)
    assert torch.equal(before[:, :place], after[:, :place])
    assert ((before - after).abs().amax((0, 2))[place:] > 1e-4).all()


@pytest.mark.parametrize("context_dim", [6, None])
@pytest.mark.parametrize("parts", [[1] * 12, [5, 1, 1, 5], [3, 4, 5], [12]])
@torch.no_grad()
def test_with_a_past_the_numbers_are_those_of_the_whole(context_dim: int | None, parts: list[int]) -> None:
    network, x = make(context_dim=context_dim), codes()
    seen = network.project_context(context()) if context_dim else None
    past = Past(12)
    found = torch.cat([network(part, seen, past) for part in x.split(parts, dim=1)], dim=1)
    assert past.seen == 12
    torch.testing.assert_close(found, network(x, context() if context_dim else None), rtol=1e-4, atol=1e-5)


def test_recomputing_blocks_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        network = make(context_dim=6, checkpoint=recompute).train()
        network(codes(), context()).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for got, expected in zip(*gradients, strict=True):
        assert expected is not None and torch.equal(got, expected)


def test_what_does_not_fit_is_refused() -> None:
    network = make(context_dim=6)
    for call, message in (
        (lambda: make(cross_attend=True), "cross_attend: got true without context_dim"),
        (lambda: make(sequence_length=None), "positional_encodings: got true without sequence_length"),
        (lambda: make(residual=True), "residual: got true, expected continuous"),
        (lambda: network(codes()), "no context.*context_dim=6"),
        (lambda: make()(codes(), context()), "a context.*context_dim=None"),
        (lambda: network(codes(n=13), context()), "got 13 tokens, expected at most sequence_length=12"),
        (lambda: network(codes(), context()[..., :5]), r"context has shape \[2, 3, 5\], expected \[B, L, 6\]"),
        (lambda: make(causal=False)(codes(), None, Past(12)), "got a past, expected none: the network is not causal"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
