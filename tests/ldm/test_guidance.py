"""Guidance: its formula, and how many images go through the network for it."""

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion.guidance import guide

CONTEXT = torch.arange(12.0).view(3, 2, 2)
X, T = torch.ones(3, 1, 2, 2), torch.tensor([5, 6, 7])


class Model:
    """A linear model of everything it is given, which counts its images."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        self.batches.append(len(x))
        told = 0 if context is None else context.sum((1, 2)).view(-1, 1, 1, 1)
        return x + 0.1 * t.view(-1, 1, 1, 1) + told


@pytest.mark.parametrize(("scale", "batch"), [(0.0, 3), (1.0, 3), (2.5, 6), (-1.0, 6)])
def test_is_linear_between_null_and_context(scale: float, batch: int) -> None:
    model, null = Model(), torch.full((1, 2, 2), 0.25)
    got = guide(model, CONTEXT, null, scale)(X, T)
    told = CONTEXT.sum((1, 2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(got, X + 0.1 * T.view(-1, 1, 1, 1) + 1.0 + scale * (told - 1.0))
    assert model.batches == [batch]


def test_unconditional_model() -> None:
    torch.testing.assert_close(guide(Model(), None)(X, T), X + 0.1 * T.view(-1, 1, 1, 1))
    torch.testing.assert_close(guide(Model(), None, project=torch.neg)(X, T), X + 0.1 * T.view(-1, 1, 1, 1))


@pytest.mark.parametrize(("scale", "batch"), [(0.0, 3), (1.0, 3), (2.5, 6)])
def test_the_context_is_projected_once_for_all_steps(scale: float, batch: int) -> None:
    projected: list[Tensor] = []

    def double(tokens: Tensor) -> Tensor:
        projected.append(2 * tokens)
        return projected[-1]

    null = torch.full((1, 2, 2), 0.25)
    denoise, expected = (
        guide(Model(), CONTEXT, null, scale, project=double),
        guide(Model(), 2 * CONTEXT, 2 * null, scale),
    )
    for step in range(4):
        assert torch.equal(denoise(step * X, T), expected(step * X, T))
    assert [len(tokens) for tokens in projected] == [batch]


def test_refuses() -> None:
    with pytest.raises(ValueError, match="guidance scale is 2.0, expected 1 without"):
        guide(Model(), CONTEXT, None, 2.0)
    with pytest.raises(ValueError, match=r"null context has shape \[1, 3, 2\], expected that of the context"):
        guide(Model(), CONTEXT, torch.zeros(1, 3, 2), 2.0)
