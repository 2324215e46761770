"""Attention against its definition, and which kernel is chosen."""

import pytest
import torch

from ldm.modules.attention import (
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
    _xformers_attention,
    attend,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_attend_is_softmax_attention_over_each_head() -> None:
    q, k, v = normal(2, 5, 3, 8), normal(2, 7, 3, 8, seed=1), normal(2, 7, 3, 8, seed=2)
    weights = torch.einsum("bnhd,blhd->bhnl", q, k).div(8**0.5).softmax(-1)
    torch.testing.assert_close(attend(q, k, v), torch.einsum("bhnl,blhd->bnhd", weights, v))


def test_one_token_is_copied_to_every_query() -> None:
    v = normal(1, 1, 2, 4, seed=2)
    out = attend(normal(1, 6, 2, 4), normal(1, 1, 2, 4, seed=1), v)
    torch.testing.assert_close(out, v.expand(1, 6, 2, 4))


@pytest.mark.parametrize(
    ("dtype", "tokens", "tolerance"),
    [
        (torch.float32, (64, 5), 1e-5),
        (torch.bfloat16, (64, 5), 2e-2),
        (torch.bfloat16, (257, 256), 2e-2),  # on either side of PLAIN_SCORES
    ],
)
def test_every_kernel_gives_the_same_numbers_and_gradients(
    dtype: torch.dtype, tokens: tuple[int, int], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, length = tokens
    inputs = [normal(2, size, 3, 8, seed=i).to(dtype).requires_grad_() for i, size in enumerate((n, length, length))]
    results = {}
    for choice in ("", "plain", "sdpa", "xformers"):  # off CUDA, xformers is as good as no choice
        monkeypatch.setenv("LDM_ATTENTION", choice)
        out = attend(*inputs)
        results[choice] = (out, *torch.autograd.grad(out.square().sum(), inputs))
    for choice in ("", "sdpa", "xformers"):
        for got, expected in zip(results[choice], results["plain"], strict=True):
            assert got.dtype == dtype and (got - expected).abs().max() <= tolerance * expected.abs().max()
    few = dtype == torch.bfloat16 and n == 64  # on a CPU, then scores are written out
    assert all(map(torch.equal, results[""], results["plain" if few else "sdpa"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_scores_give_the_same_numbers_on_every_processor(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.modules.attention.PARTED_SCORES", 0)
    q, k, v = (normal(2, size, 3, 8, seed=i).to(dtype) for i, size in enumerate((9, 7, 7)))
    got = attend(q, k, v)
    weights = torch.einsum("bnhd,blhd->bhnl", q.float(), k.float()).div(8**0.5).softmax(-1)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    expected = torch.einsum("bhnl,blhd->bnhd", weights, v.float())
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "length"), [(6, 6), (1, 6), (4, 6)])
def test_causal_queries_see_no_later_keys(
    dtype: torch.dtype, n: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = (normal(2, size, 3, 8, seed=i).to(dtype) for i, size in enumerate((n, length, length)))
    ends = range(length - n + 1, length + 1)
    expected = [attend(q[:, i : i + 1], k[:, :end], v[:, :end]) for i, end in enumerate(ends)]
    for choice in ("", "plain", "sdpa", "xformers"):
        monkeypatch.setenv("LDM_ATTENTION", choice)
        got = attend(q.requires_grad_(), k, v, causal=True)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got, torch.cat(expected, dim=1), rtol=tolerance, atol=tolerance)
        assert torch.autograd.grad(got.float().sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("choice", ["", "plain", "sdpa"])
def test_a_context_projected_outside_of_autocast_is_seen_inside(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_ATTENTION", choice)
    torch.manual_seed(0)
    attention, x, context = CrossAttention(16, context_dim=8, heads=2, dim_head=8), normal(2, 5, 16), normal(2, 4, 8)
    seen, expected = attention.project(context), attention(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(x, seen)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    q = normal(1, 5, 2, 8).bfloat16()
    assert attend(q, q.float(), q.float()).dtype == torch.bfloat16  # also outside of it


def test_unknown_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(1, 4, 1, 8)
    monkeypatch.setenv("LDM_ATTENTION", "flash")
    with pytest.raises(ValueError, match="LDM_ATTENTION.*'flash'.*'xformers', 'sdpa' or 'plain'"):
        attend(q, q, q)


@pytest.mark.gpu
def test_xformers_equals_torch_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xformers.ops")
    if _xformers_attention() is None:
        pytest.skip("this xformers has no kernels for this GPU")
    q, k, v = (normal(2, n, 4, 32, seed=n).cuda().half() for n in (64, 5, 5))
    monkeypatch.setenv("LDM_ATTENTION", "sdpa")
    expected = attend(q, k, v)
    monkeypatch.setenv("LDM_ATTENTION", "xformers")
    torch.testing.assert_close(attend(q, k, v), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(attend(q, k.float(), v.float()), expected, rtol=2e-3, atol=2e-3)
    monkeypatch.setenv("LDM_ATTENTION", "")
    double = [x.double() for x in (q, k, v)]  # it has no kernels for these
    torch.testing.assert_close(attend(*double).half(), expected, rtol=2e-3, atol=2e-3)


def test_order_of_context_tokens_does_not_matter_but_their_content_does() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(16, context_dim=8, heads=2, dim_head=8)
    x, context = normal(2, 5, 16), normal(2, 4, 8, seed=1)
    out = attention(x, context)
    torch.testing.assert_close(attention(x, context.flip(1)), out)
    torch.testing.assert_close(attention(x, context.repeat(1, 2, 1)), out)
    assert not torch.allclose(attention(x, 2 * context), out)


def test_a_context_may_be_projected_beforehand() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(16, context_dim=8, heads=2, dim_head=8)
    x, context = normal(2, 5, 16), normal(2, 4, 8, seed=1)
    seen = attention.project(context)
    assert seen.keys.shape == seen.values.shape == (2, 4, 2, 8)
    assert torch.equal(attention(x, seen), attention(x, context))
    transformer = SpatialTransformer(32, 2, 16, depth=2, context_dim=[8, 6], use_checkpoint=True)
    torch.nn.init.normal_(transformer.proj_out.weight)
    image, contexts = normal(2, 32, 4, 4).requires_grad_(), [context, normal(2, 3, 6, seed=2)]
    raw, projected = transformer(image, contexts), transformer(image, transformer.project(contexts))
    assert torch.equal(raw, projected)
    (expected,) = torch.autograd.grad(raw.square().sum(), image)
    assert torch.equal(torch.autograd.grad(projected.square().sum(), image)[0], expected)
    with pytest.raises(ValueError, match="3 contexts.*2 blocks"):
        transformer.project([context] * 3)


def test_checkpoint_names() -> None:
    names = set(SpatialTransformer(32, 2, 16, context_dim=8).state_dict())
    block = "transformer_blocks.0."
    expected = {f"{name}.{part}" for name in ("norm", "proj_in", "proj_out") for part in ("weight", "bias")}
    expected |= {f"{block}norm{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
    expected |= {f"{block}ff.net.{i}.{part}" for i in ("0.proj", "2") for part in ("weight", "bias")}
    for attention in ("attn1", "attn2"):
        expected |= {f"{block}{attention}.to_{part}.weight" for part in "qkv"}
        expected |= {f"{block}{attention}.to_out.0.{part}" for part in ("weight", "bias")}
    assert names == expected


def test_plain_feed_forward_and_checkpointing_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    block = BasicTransformerBlock(16, 2, 8, gated_ff=False)
    x = normal(2, 5, 16).requires_grad_()
    (plain,) = torch.autograd.grad(block(x).square().sum(), x)
    block.use_checkpoint = True
    (recomputed,) = torch.autograd.grad(block(x).square().sum(), x)
    assert torch.equal(plain, recomputed)


def test_one_context_serves_all_blocks_and_a_list_each_its_own() -> None:
    torch.manual_seed(0)
    transformer = SpatialTransformer(32, 2, 16, depth=2, context_dim=8)
    torch.nn.init.normal_(transformer.proj_out.weight)
    x, context = normal(1, 32, 4, 4), normal(1, 3, 8, seed=1)
    out = transformer(x, context)
    assert torch.equal(transformer(x, [context, context]), out)
    assert torch.equal(transformer(x, [context]), out)
    assert not torch.allclose(transformer(x, [context, -context]), out)
    with pytest.raises(ValueError, match="3 contexts.*2 blocks"):
        transformer(x, [context] * 3)
    with pytest.raises(ValueError, match="context_dim.* 3 "):
        SpatialTransformer(32, 2, 16, depth=2, context_dim=[8, 8, 8])


@pytest.mark.parametrize("causal", [True, False])
def test_self_attention_in_training_is_that_of_sampling(causal: bool) -> None:
    """In training, one product makes queries, keys and values."""
    attention, x = CrossAttention(48, heads=3, dim_head=8), normal(2, 5, 48)
    with torch.no_grad():
        expected = attention(x, causal=causal)
        torch.testing.assert_close(attention(x, x, causal=causal), expected)
    trained = attention(x, causal=causal)
    torch.testing.assert_close(trained, expected)
    trained.sum().backward()
    assert all(parameter.grad.any() for parameter in (attention.to_q.weight, attention.to_k.weight))
