"""Attention against its definition, and which kernel is chosen."""

import pytest
import torch

from ldm.modules.attention import BasicTransformerBlock, CrossAttention, SpatialTransformer, attend


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


def test_environment_chooses_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(1, 4, 1, 8)
    expected = attend(q, q, q)
    for choice in ("sdpa", "xformers"):  # off CUDA both are torch's
        monkeypatch.setenv("LDM_ATTENTION", choice)
        assert torch.equal(attend(q, q, q), expected)
    monkeypatch.setenv("LDM_ATTENTION", "flash")
    with pytest.raises(ValueError, match="LDM_ATTENTION is 'flash', expected 'xformers' or 'sdpa'"):
        attend(q, q, q)


@pytest.mark.gpu
def test_xformers_equals_torch_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xformers.ops")
    q, k, v = (normal(2, n, 4, 32, seed=n).cuda().half() for n in (64, 5, 5))
    monkeypatch.setenv("LDM_ATTENTION", "sdpa")
    expected = attend(q, k, v)
    monkeypatch.setenv("LDM_ATTENTION", "xformers")
    torch.testing.assert_close(attend(q, k, v), expected, rtol=2e-3, atol=2e-3)


def test_order_of_context_tokens_does_not_matter_but_their_content_does() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(16, context_dim=8, heads=2, dim_head=8)
    x, context = normal(2, 5, 16), normal(2, 4, 8, seed=1)
    out = attention(x, context)
    torch.testing.assert_close(attention(x, context.flip(1)), out)
    torch.testing.assert_close(attention(x, context.repeat(1, 2, 1)), out)
    assert not torch.allclose(attention(x, 2 * context), out)


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
    with pytest.raises(ValueError, match="got 3 contexts, expected one for each of 2 blocks"):
        transformer(x, [context] * 3)
    with pytest.raises(ValueError, match="context_dim lists 3 widths"):
        SpatialTransformer(32, 2, 16, depth=2, context_dim=[8, 8, 8])
