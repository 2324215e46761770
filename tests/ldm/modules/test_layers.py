"""Layers under torch's names: torch's numbers, gradients and state, in whatever order of memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules import layers, winograd
from ldm.modules.layers import Conv2d, Dropout, GroupNorm, Linear, UpsamplingConv2d, attend_in_parts, channels_last


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor, prepare: object = None) -> None:
    """Outputs without gradients, outputs with them, and the gradients are the same."""
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        before = F.interpolate(given, scale_factor=2.0, mode="nearest") if prepare and module is theirs else given
        y = module(before)
        (y * numbers(*y.shape)).sum().backward()
        results.append([y.detach(), given.grad, *(parameter.grad for parameter in module.parameters())])
    with torch.no_grad():
        results[0].append(ours(x))
        results[1].append(results[1][0])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (0, 24), (2, 20, 24)])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    if shape[0]:
        assert_same(Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias), numbers(*shape))
    else:
        assert Linear(24, 40, bias=bias)(torch.zeros(shape)).shape == (0, 40)


def test_linear_follows_autocast_and_lower_precision() -> None:
    layer, x = Linear(24, 40), numbers(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((8, 12, 1), {}),
        ((8, 12, 3), {"padding": 1}),
        ((8, 12, 3), {"padding": 1, "stride": 2}),
        ((8, 12, 2), {"padding": 1, "bias": False}),
    ],
)
def test_convolutions(arguments: tuple[int, ...], options: dict, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LARGE_WEIGHT", 1)  # also where few pixels become a product of matrices
    x = numbers(2, 8, 6, 4)
    assert_same(Conv2d(*arguments, **options), nn.Conv2d(*arguments, **options), channels_last(x) if last else x)


def test_large_weights_of_few_pixels() -> None:
    assert_same(Conv2d(344, 344, 3, padding=1), nn.Conv2d(344, 344, 3, padding=1), channels_last(numbers(1, 344, 4, 4)))


@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_a_convolution_after_repetition(size: tuple[int, int]) -> None:
    """The larger size takes the short way, the smaller one does not pay."""
    ours, theirs = UpsamplingConv2d(6, 7, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
    assert_same(ours, theirs, numbers(2, 6, *size), prepare=True)


@pytest.mark.parametrize(("deviation", "tolerance"), [(0.01, 1e-3), (1.0, 1e-5), (4.0, 1e-5)])
def test_group_norm_of_large_means_keeps_its_digits(deviation: float, tolerance: float) -> None:
    norm, x = GroupNorm(4, 16).eval(), deviation * numbers(2, 16, 9, 9) + 5.0
    exact = nn.GroupNorm(4, 16).double()(x.double()).float()
    torch.testing.assert_close(norm(channels_last(x)), norm(x), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm(channels_last(x)), exact, rtol=tolerance, atol=tolerance)


def test_group_norm_of_an_image_does_not_depend_on_the_others() -> None:
    norm, x = GroupNorm(4, 16).eval(), numbers(2, 16, 9, 9)
    beside = norm(channels_last(x + torch.tensor([100.0, 0.0]).view(2, 1, 1, 1)))  # the first has large means
    assert torch.equal(beside[1], norm(channels_last(x))[1])


@pytest.mark.parametrize("side", [6, 40])
def test_group_norm_in_bfloat16_with_few_and_many_pixels(side: int) -> None:
    x = channels_last(numbers(2, 16, side, side).bfloat16()).requires_grad_()
    ours, exact = GroupNorm(4, 16), nn.GroupNorm(4, 16)
    with torch.no_grad():
        for value, other in zip(ours.parameters(), exact.parameters(), strict=True):
            other.copy_(value.copy_(1 + 0.5 * numbers(*value.shape)))
    y = ours(x)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    gradient = numbers(*y.shape).bfloat16().float()
    torch.testing.assert_close(y.float(), exact(x.float()), rtol=1e-2, atol=2e-2)
    expected = torch.autograd.grad((exact(x.float()) * gradient).sum(), (x, *exact.parameters()))
    got = torch.autograd.grad((y * gradient).sum(), (x, *ours.parameters()))
    for ours_, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))


WITH_BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not layers.HAS_BFLOAT16, reason="oneDNN has no products of bfloat16 on this processor"),
)


@pytest.mark.parametrize("dtype", [torch.float32, WITH_BFLOAT16])
def test_attention_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "QUERIES_AT_ONCE", 4)
    q, k, v = numbers(2, 9, 3, 8), numbers(2, 7, 3, 8), numbers(2, 7, 3, 8).flip(0)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    got = attend_in_parts(q.to(dtype), k.to(dtype), v.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=1e-5 if dtype == torch.float32 else 3e-2)


def test_weights_lie_channels_last_on_a_cpu_and_keep_their_names_and_numbers() -> None:
    layer, plain = Conv2d(8, 12, 3), nn.Conv2d(8, 12, 3)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    assert layer.double().weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.to("meta").weight.is_contiguous()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (16, 4)])
def test_the_gradient_of_a_wide_convolution(size: tuple[int, int], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed by another method where that is faster, which this test forces on every processor."""
    monkeypatch.setattr(layers, "SLOW_SUMS", layers.HAS_ONEDNN)
    monkeypatch.setattr(winograd, "NUMBERS_AT_ONCE", 1 << 15)  # some images at a time
    arguments = {"padding": 1, "bias": bias}
    x = channels_last(numbers(8, 32, *size))
    assert_same(Conv2d(32, 40, 3, **arguments), nn.Conv2d(32, 40, 3, **arguments), x)


def test_the_gradient_of_a_weight_is_as_exact_as_torchs() -> None:
    x, gradient = numbers(8, 5, 8, 12), numbers(8, 7, 8, 12)
    shape = [7, 5, 3, 3]
    exact = torch.nn.grad.conv2d_weight(x.double(), shape, gradient.double(), padding=1)
    theirs = torch.nn.grad.conv2d_weight(x, shape, gradient, padding=1)
    error = (winograd.weight_gradient(x, gradient) - exact).norm() / exact.norm()
    assert error < max(1e-5, 10 * float((theirs - exact).norm() / exact.norm()))


@pytest.mark.parametrize(
    ("layer", "shape"), [(Conv2d(32, 32, 3, padding=1), (8, 32, 8, 8)), (Linear(6, 7), (5, 6))], ids=["conv", "linear"]
)
def test_gradients_have_gradients(layer: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SLOW_SUMS", layers.HAS_ONEDNN)
    x = channels_last(numbers(*shape)).requires_grad_()
    twice = []
    for weight, bias in ((layer.weight, layer.bias), (layer.weight.detach().clone().requires_grad_(), layer.bias)):
        convolution = isinstance(layer, Conv2d)
        plain = F.conv2d(x, weight, bias, padding=1) if convolution else F.linear(x, weight, bias)
        y = layer(x) if weight is layer.weight else plain
        (of_weight,) = torch.autograd.grad(y.square().mean(), weight, create_graph=True)
        twice.append(torch.autograd.grad(of_weight.square().sum(), x)[0])
    torch.testing.assert_close(*twice, rtol=1e-3, atol=1e-4 * float(twice[1].abs().max()))


@pytest.mark.parametrize("last", [True, False])
def test_dropout(last: bool) -> None:
    layer, x = Dropout(0.25), 1 + numbers(64, 8, 16, 16).abs()
    x = (channels_last(x) if last else x).requires_grad_()
    y = layer(x)
    kept = y != 0
    assert 0.23 < 1 - float(kept.float().mean()) < 0.27
    assert 0.23 < 1 - float(kept[:, :, ::2].float().mean()) < 0.27  # not a whole row at once
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept / 0.75)
    assert y.stride() == x.stride()
    assert not torch.equal(layer(x), y)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(rate: float) -> None:
    assert torch.equal(Dropout(rate)(torch.ones(8)), torch.full((8,), 1 - rate))
