"""Guidance: its formula, and how many images go through the network for it."""

import pytest
import torch
from torch import Tensor

from ldm.models.diffusion.guidance import autoguide, guide

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


@pytest.mark.parametrize(("scale", "part_scale", "batch"), [(3.0, 2.0, 9), (2.0, 2.0, 6), (0.0, 1.0, 3), (1.0, 1.0, 3)])
def test_a_part_of_the_context_has_its_own_scale(scale: float, part_scale: float, batch: int) -> None:
    model, null, part = Model(), torch.full((1, 2, 2), 0.25), CONTEXT[:, :1]
    got = guide(model, CONTEXT, null, scale, parts=[(part.repeat(1, 2, 1), part_scale)])(X, T)
    # One token in the place of two: attention sees no difference, and a sum sees it twice.
    of_part, told = 2 * part.sum((1, 2)).view(-1, 1, 1, 1), CONTEXT.sum((1, 2)).view(-1, 1, 1, 1)
    guided = 1.0 + part_scale * (of_part - 1.0) + scale * (told - of_part)
    torch.testing.assert_close(got, X + 0.1 * T.view(-1, 1, 1, 1) + guided)
    assert model.batches == [batch]


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_deviation_of_each_image_back(share: float) -> None:
    """Of the image, not of eps: the direction from black to white that guidance adds here hardly changes eps' own."""
    x, null = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 2, 2)
    levels = torch.linspace(0.1, 0.99, 10)
    level = levels[T].view(-1, 1, 1, 1)

    def model(x: Tensor, t: Tensor, context: Tensor) -> Tensor:  # noqa: ARG001
        return x - 0.01 * torch.linspace(-1, 1, 8) * context.sum((1, 2)).view(-1, 1, 1, 1)

    def deviation(**options: float) -> Tensor:
        eps = guide(model, CONTEXT, null, levels=levels, **options)(x, T)
        return ((x - level * eps) / (1 - level**2).sqrt()).flatten(1).std(1)

    guided, plain = deviation(scale=4.0), deviation(scale=1.0)
    torch.testing.assert_close(deviation(scale=4.0, rescale=share), share * plain + (1 - share) * guided)


def test_guides_within_an_interval_of_times() -> None:
    null = torch.full((1, 2, 2), 0.25)
    within = guide(Model(), CONTEXT, null, 3.0, interval=(10, 20))
    for time, scale in ((9, 1.0), (10, 3.0), (20, 3.0), (21, 1.0)):
        t = torch.full((3,), time)
        assert torch.equal(within(X, t), guide(Model(), CONTEXT, null, scale)(X, t))


def test_autoguidance_leads_away_from_a_weaker_model() -> None:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return 3 * x + t.view(-1, 1, 1, 1)

    def weaker(x: Tensor, t: Tensor) -> Tensor:
        return x + t.view(-1, 1, 1, 1)

    assert torch.equal(autoguide(denoise, weaker, 2.5)(X, T), 6 * X + T.view(-1, 1, 1, 1))
    assert autoguide(denoise, weaker, 1.0) is denoise


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
    with pytest.raises(ValueError, match="scale is 2.0"):
        guide(Model(), CONTEXT, None, 2.0)
    with pytest.raises(ValueError, match=r"null context.*\[1, 3, 2\]"):
        guide(Model(), CONTEXT, torch.zeros(1, 3, 2), 2.0)
    with pytest.raises(ValueError, match="rescale is 1.5"):
        guide(Model(), CONTEXT, torch.zeros(1, 2, 2), 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="rescale is 0.5.*noise levels"):
        guide(Model(), CONTEXT, torch.zeros(1, 2, 2), 2.0, rescale=0.5)
    with pytest.raises(ValueError, match=r"part.*\[3, 3, 2\].*\[3, 2, 2\]"):
        guide(Model(), CONTEXT, torch.zeros(1, 2, 2), 2.0, parts=[(torch.zeros(3, 3, 2), 2.0)])
