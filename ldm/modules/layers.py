"""Linear layers and convolutions under torch's names and numbers, computed by what is fastest where they run.

On a CPU torch computes float32 matrix products with MKL, which on some processors reaches half of what oneDNN does
(on others as much), and convolutions with oneDNN, which wants channels last and weights in an order of its own: for
large weights and small feature maps, bringing them into that order costs more than the convolution. Elsewhere
these are torch's own layers.

``B`` batch, ``C`` channels, ``H`` heads, ``N`` queries, ``L`` keys, ``D`` width. benchmarks/networks.py measures it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Convolutions with so few pixels of so large weights are matrix products of the pixels' neighbourhoods.
FEW_PIXELS = 256
LARGE_WEIGHT = 1 << 20
# Below so many pixels torch's group norm goes through groups, above through pixels, where channels lie last.
FEW_ROWS = 1024
# One picture's features of up to so many numbers stay in the cache while a group norm goes back through them.
PICTURE = 1 << 22
# A group's mean in standard deviations, from which on the float32 group norm of torch loses more than half a digit.
LARGE_MEAN = 2.0
# Queries of one matrix product of attention: its scores stay in the cache.
QUERIES_AT_ONCE = 512
# A product of so few rows waits for its weights. MKL reads them as they lie; oneDNN brings them into another order, and
# takes up to four times as long.
FEW_TOKENS = 16
# Products of MKL, of which torch's fused attention is made, reach their speed on Intel's own processors only.
_capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # earlier torch does not tell
INTEL = "intel" in str(_capabilities().get("cpu_name", "")).lower()
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Without AVX-512 or a successor oneDNN has no products of bfloat16, and calling it by name is an error.
HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(x: Tensor, *others: Tensor | None) -> bool:
    """Whether to call oneDNN by name: float32 on a CPU that has it, outside of autocast."""
    if not HAS_ONEDNN or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == torch.float32 and all(other is None or other.dtype == x.dtype for other in others)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("ldm::linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` and its gradients with oneDNN's matrix product, which torch.compile leaves as it is."""
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns ``F.linear(x, weight, bias)``: ``[..., C]`` with weight ``[C', C]`` to ``[..., C']``."""
    if not _onednn(x, weight, bias) or not x.numel():
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _linear(x, weight, bias)
    if x.numel() <= FEW_TOKENS * x.shape[-1]:
        return F.linear(x, weight, bias)
    return _product(x, weight, bias)  # the same, called without detours


class Linear(nn.Linear):
    """torch's linear layer, with :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)


def channels_last(x: Tensor) -> Tensor:
    """Returns a feature map [B, C, h, w] in the order of memory that convolutions like best where it is; else as it is.

    On CUDA that is as given: torch's group norm there knows no other order.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.device.type == "cpu" else x


class GroupNorm(nn.GroupNorm):
    """torch's group norm, which on a CPU has two weak spots where memory lies channels last.

    In float32 it loses digits where means are large beside deviations, as it takes the variance as a difference of
    squares. The norm does not see what is added to a whole group, so there the mean of some pixels is subtracted
    first. In bfloat16, of groups with few channels, it reads a few numbers at a time: with fewer than ``FEW_ROWS``
    pixels always, and with more on the way back. There, bringing channels first and last again is up to ten times
    faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape as x [B, C, ...]."""
        if x.ndim != 4 or x.device.type != "cpu" or torch.compiler.is_compiling() or x.is_contiguous():
            return super().forward(x)
        if x.dtype == torch.bfloat16 and x.shape[1] < 16 * self.num_groups:
            back = torch.is_grad_enabled() and x[0].numel() <= PICTURE
            if back or x.shape[2] * x.shape[3] < FEW_ROWS:
                return channels_last(super().forward(x.contiguous()))
        if _onednn(x):
            some = x.detach()[:, :, :: max(1, x.shape[2] // 8), :: max(1, x.shape[3] // 8)]
            variance, mean = torch.var_mean(some.reshape(len(x), self.num_groups, -1), 2, correction=0)
            large = mean.square() > LARGE_MEAN**2 * variance
            if large.any():  # of any image; the others stay as they are, to the last bit
                mean = mean.where(large, 0.0)
                x = x - mean.repeat_interleave(x.shape[1] // self.num_groups, 1)[:, :, None, None]
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """torch's convolution; on a CPU its weight lies channels last, and products of matrices do what they do faster."""

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
        return super().forward(x)


class UpsamplingConv2d(Conv2d):
    """A 3x3 convolution of what has twice the size of its input, by repetition.

    Of the nine pixels that it sees, only four differ: each of the four kinds of output pixels is a 2x2 convolution of
    the input, which is less than half of the work. That pays where there are many pixels for the weights to be added.
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
    """Returns three weights along a dimension as the two that even (phase 0) or odd pixels see after repetition."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((first, middle + last) if phase == 0 else (first + middle, last), dim)


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v [B, N, H, D] without gradients, one head and some queries at a time.

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
    """Whether :func:`attend_in_parts` takes these, and is faster than torch's fused kernel.

    It needs a CPU for whose dtype oneDNN has products, and no gradients, autocast or compilation; it is slower on
    Intel's processors.
    """
    dtypes = (torch.float32, torch.bfloat16) if HAS_BFLOAT16 else (torch.float32,)
    if INTEL or q.device.type != "cpu" or torch.compiler.is_compiling() or q.dtype not in dtypes:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return False
    return HAS_ONEDNN and q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled("cpu")
