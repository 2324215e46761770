"""Linear layers, convolutions and norms with torch's names and results, which are faster than torch's on a CPU.

On a CPU torch computes float32 matrix products with MKL, which is half as fast as oneDNN on some processors and as fast
on others. It computes convolutions with oneDNN, which needs channels last and weights in a memory order of its own: for
large weights and small feature maps, the reordering takes longer than the convolution. On other devices these layers
call torch's. benchmarks/networks.py measures the differences.

``B`` batch, ``C`` channels, ``H`` heads, ``N`` queries, ``L`` keys, ``D`` width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.winograd import weight_gradient

# A 3x3 convolution of at most so many pixels with at least so many weights is computed as one matrix product.
FEW_PIXELS = 256
LARGE_WEIGHT = 1 << 20
# With channels last, torch's group norm loops over groups below so many pixels, and over pixels from there on.
FEW_ROWS = 1024
# Features of one image with up to so many numbers stay in the cache during the backward pass of a group norm.
PICTURE = 1 << 22
# If a group's mean is more than so many standard deviations, torch's float32 group norm loses half a digit or more.
LARGE_MEAN = 2.0
# Number of queries in one matrix product of attention, so that its scores stay in the cache.
QUERIES_AT_ONCE = 512
# A product of at most so many rows is bound by reading its weights. MKL reads them as they are; oneDNN reorders them
# first and takes up to four times as long.
FEW_TOKENS = 16
# torch's fused attention uses MKL's products, which are fast on Intel's own processors only.
_capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # missing in earlier versions of torch
INTEL = "intel" in str(_capabilities().get("cpu_name", "")).lower()
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Without AVX-512 or a successor oneDNN has no products of bfloat16, and calling it by name is an error.
HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# A gradient of a weight is a product of two transposed matrices. oneDNN copies them first, MKL reads them as they are:
# faster without AVX-512 (benchmarks/training.py) and on Intel's processors, where the products of MKL are as fast.
MKL_SUMS = INTEL or not HAS_BFLOAT16
# Without AVX-512, oneDNN sums the gradient of a convolution's weight at half of the rate of its other products.
SLOW_SUMS = HAS_ONEDNN and not HAS_BFLOAT16
# The transforms of ldm.modules.winograd pay from so many channels and pixels on.
WIDE, MANY_PIXELS = 32, 512


def _onednn(x: Tensor, *others: Tensor | None) -> bool:
    """Whether to call oneDNN by name: float32 on a CPU that has it, outside of autocast."""
    if not HAS_ONEDNN or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == torch.float32 and all(other is None or other.dtype == x.dtype for other in others)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("ldm::linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` and its gradients with oneDNN's matrix product, as an operator that torch.compile does not trace."""
    return _product(x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    rows = gradient.reshape(-1, weight.shape[0])
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        _linear(rows, weight.t(), None).view(x.shape) if of_x else None,
        _linear(rows.t(), x.reshape(-1, weight.shape[1]).t(), None) if of_weight else None,
        rows.sum(0) if of_bias else None,
    )


_linear.register_autograd(_gradients, setup_context=_save)


class _Linear(torch.autograd.Function):
    """The same outside of ``torch.compile``, without the cost of a custom operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or not MKL_SUMS:
            return _gradients(ctx, gradient)
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, weight.shape[0])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(rows, weight.t()).view(x.shape) if of_x else None,
            rows.t() @ x.reshape(-1, weight.shape[1]) if of_weight else None,
            (rows.new_ones(1, len(rows)) @ rows)[0] if of_bias else None,  # twice as fast as a sum over rows
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns ``F.linear(x, weight, bias)``: ``[..., C]`` with weight ``[C', C]`` to ``[..., C']``."""
    if not _onednn(x, weight, bias) or not x.numel():
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        return _linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    if x.numel() <= FEW_TOKENS * x.shape[-1]:
        return F.linear(x, weight, bias)
    return _product(x, weight, bias)  # the same product without the cost of a custom operator


class Linear(nn.Linear):
    """torch's linear layer, computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)


def channels_last(x: Tensor) -> Tensor:
    """Returns a feature map [B, C, h, w] with channels last in memory if it is on a CPU, else unchanged.

    On CUDA torch's group norm supports no channels-last order.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.device.type == "cpu" else x


class GroupNorm(nn.GroupNorm):
    """torch's group norm, without its two weaknesses on a CPU with channels last.

    In float32, torch's computes the variance as a difference of squares, which loses digits if a mean is large compared
    to the standard deviation. The result does not change if a constant is added to a whole group, so in that case the
    mean of some pixels is subtracted first; not in training, where looking at the means takes up to a fifth of a step
    of a small U-Net. In bfloat16 with few channels in a group, torch's reads a few numbers at a time: below
    ``FEW_ROWS`` pixels always, and above in the backward pass. In these cases, reordering the memory to channels first
    and back is up to ten times faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as x [B, C, ...]."""
        if x.ndim != 4 or x.device.type != "cpu" or torch.compiler.is_compiling() or x.is_contiguous():
            return super().forward(x)
        if x.dtype == torch.bfloat16 and x.shape[1] < 16 * self.num_groups:
            back = torch.is_grad_enabled() and x[0].numel() <= PICTURE
            if back or x.shape[2] * x.shape[3] < FEW_ROWS:
                return channels_last(super().forward(x.contiguous()))
        if not self.training and _onednn(x):
            some = x.detach()[:, :, :: max(1, x.shape[2] // 8), :: max(1, x.shape[3] // 8)]
            variance, mean = torch.var_mean(some.reshape(len(x), self.num_groups, -1), 2, correction=0)
            large = mean.square() > LARGE_MEAN**2 * variance
            if large.any():  # the other groups keep their values bit for bit
                mean = mean.where(large, 0.0)
                x = x - mean.repeat_interleave(x.shape[1] // self.num_groups, 1)[:, :, None, None]
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """torch's convolution; on a CPU with a channels-last weight, and as a matrix product where that is faster."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight.data = channels_last(self.weight.data)

    def _apply(self, fn: Any, recurse: bool = True) -> Conv2d:
        super()._apply(fn, recurse)
        on_cpu = self.weight.device.type == "cpu"
        order = torch.channels_last if on_cpu else torch.contiguous_format
        self.weight.data = self.weight.data.contiguous(memory_format=order)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to [B, C', h', w']."""
        plain = self.stride == (1, 1) and self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not plain or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        pixels = x.permute(0, 2, 3, 1)
        if self.kernel_size == (1, 1) and self.padding == (0, 0) and pixels.is_contiguous():
            return linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        few = pixels[..., 0].numel() <= FEW_PIXELS and self.weight.numel() >= LARGE_WEIGHT
        if few and self.kernel_size == (3, 3) and self.padding == (1, 1):
            h, w = x.shape[2:]
            framed = F.pad(pixels, (0, 0, 1, 1, 1, 1))
            around = torch.cat([framed[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], dim=-1)
            weight = self.weight.permute(0, 2, 3, 1).flatten(1)
            return linear(around, weight, self.bias).permute(0, 3, 1, 2)
        if self.kernel_size == (3, 3) and self.padding == (1, 1) and self._sums_slowly(x):
            return _Convolution.apply(x, self.weight, self.bias)
        return super().forward(x)

    def _sums_slowly(self, x: Tensor) -> bool:
        """Whether the weight has a gradient that :func:`weight_gradient` computes faster than oneDNN."""
        if not (SLOW_SUMS and torch.is_grad_enabled() and self.weight.requires_grad and _onednn(x, self.weight)):
            return False
        large = min(self.in_channels, self.out_channels) >= WIDE and x[:, 0].numel() >= MANY_PIXELS
        return large and x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution with padding 1, and the gradient of its weight by :func:`weight_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # for gradients of gradients, by torch's operator

        def torchs(*wanted: bool) -> tuple[Tensor | None, ...]:
            sizes, ones = [weight.shape[0]], [1, 1]
            return torch.ops.aten.convolution_backward(
                gradient, x, weight, sizes, ones, ones, ones, False, [0, 0], 1, list(wanted)
            )

        if again or not of_weight:
            return torchs(of_x, of_weight, of_bias)
        gradient = channels_last(gradient)
        of_input = torchs(True, False, False)[0] if of_x else None
        return of_input, weight_gradient(x, gradient), gradient.sum((0, 2, 3)) if of_bias else None


class Dropout(nn.Dropout):
    """torch's dropout, which on a CPU draws 16 random bits for each number instead of a floating-point number.

    The rate is rounded to a multiple of 1 / 65536.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as x, with numbers set to zero and the others scaled in training."""
        dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
        cut = round(self.p * (1 << 16))
        fast = self.training and dense and x.device.type == "cpu" and 0 < cut < 1 << 16 and x.numel()
        if not fast or torch.compiler.is_compiling():
            return super().forward(x)
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
        kept = drawn.view(torch.int16).as_strided(x.shape, x.stride()) >= cut - (1 << 15)
        return x * kept.to(x.dtype).mul_(1 / (1 - cut / (1 << 16)))


class UpsamplingConv2d(Conv2d):
    """Nearest-neighbour upsampling by 2 followed by a 3x3 convolution.

    Only four of the nine pixels that the convolution reads differ, so each of the four kinds of output pixels is a 2x2
    convolution of the input, which is less than half of the work. This is faster if there are enough pixels to make up
    for adding the weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to [B, C', 2h, 2w]."""
        batch, channels, h, w = x.shape
        if not _onednn(x, self.weight) or batch * h * w < 2 * channels:
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        out = channels_last(x.new_empty(batch, self.out_channels, 2 * h, 2 * w))
        for i in (0, 1):
            for j in (0, 1):
                kernel = channels_last(_half(_half(self.weight, 2, i), 3, j))
                out[:, :, i::2, j::2] = F.conv2d(x, kernel, self.bias, padding=1)[:, :, i : i + h, j : j + w]
        return out


def _half(weight: Tensor, dim: int, phase: int) -> Tensor:
    """Returns two weights for three along a dimension: sums by the input pixel that an output of this phase reads."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((first, middle + last) if phase == 0 else (first + middle, last), dim)


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v [B, N, H, D] without gradients, for one head and some queries at a time.

    Args:
        q: queries [B, N, H, D], float32 or bfloat16, on a CPU whose oneDNN has products of that dtype.
        k: keys [B, L, H, D].
        v: values [B, L, H, D].
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            queries, keys, values = q[b, :, h] * q.shape[-1] ** -0.5, k[b, :, h].contiguous(), v[b, :, h].t()
            values = values.contiguous()
            for start in range(0, len(queries), QUERIES_AT_ONCE):
                part = slice(start, start + QUERIES_AT_ONCE)
                out[b, part, h] = _product(torch.softmax(_product(queries[part], keys), dim=-1), values)
    return out


def can_attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether :func:`attend_in_parts` supports these tensors and is faster than torch's fused kernel.

    It requires a CPU on which oneDNN has matrix products of the dtype, and no gradients, autocast or compilation. On
    Intel's processors it is slower.
    """
    dtypes = (torch.float32, torch.bfloat16) if HAS_BFLOAT16 else (torch.float32,)
    if INTEL or q.device.type != "cpu" or torch.compiler.is_compiling() or q.dtype not in dtypes:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return False
    return HAS_ONEDNN and q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled("cpu")
