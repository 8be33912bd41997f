"""Attention and blocks, against plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mgmae_cli.model import attention as attention_module
from mgmae_cli.model.attention import attention
from mgmae_cli.model.blocks import Block


def plain_block(block: Block, x: torch.Tensor, heads: int) -> torch.Tensor:
    """Compute a block with explicit softmax and a bias on queries and values only."""
    batch, tokens, width = x.shape
    normed = F.layer_norm(x, (width,), block.norm1.weight, block.norm1.bias, 1e-6)
    w_q, w_k, w_v = block.attn.qkv.weight.chunk(3)
    q, k, v = normed @ w_q.T + block.attn.q_bias, normed @ w_k.T, normed @ w_v.T + block.attn.v_bias
    q, k, v = (y.view(batch, tokens, heads, -1).transpose(1, 2) for y in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    x = x + block.attn.proj((weights @ v).transpose(1, 2).reshape(x.shape)) * getattr(block, "gamma_1", 1.0)
    normed = F.layer_norm(x, (width,), block.norm2.weight, block.norm2.bias, 1e-6)
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(normed))) * getattr(block, "gamma_2", 1.0)


@pytest.mark.parametrize("layer_scale", [False, True])
def test_block_equals_its_formula_and_may_be_asked_for_its_last_tokens(layer_scale: bool) -> None:
    torch.manual_seed(0)
    block = Block(24, 3, 48, eps=1e-6, layer_scale=layer_scale)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 7, 24)
    wanted = plain_block(block, x, 3)
    assert torch.allclose(block(x), wanted, atol=1e-5)
    assert torch.allclose(block(x, 3), wanted[:, -3:], atol=1e-5)


@pytest.mark.parametrize("queries", [5, 9])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("heads", [2, 0.4])  # two at a time, and one left over; or some queries of one
@pytest.mark.parametrize("amx", [False, True])
def test_attention_in_bf16_on_the_cpu_equals_fp32_up_to_rounding(
    monkeypatch: pytest.MonkeyPatch, batch: int, queries: int, heads: float, amx: bool
) -> None:
    monkeypatch.setattr(attention_module, "has_amx", lambda: amx)
    monkeypatch.setattr(attention_module, "SCORES_AT_A_TIME", int(heads * queries * 9))
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, queries, 3, 16), (batch, 9, 3, 16), (batch, 9, 3, 16)]
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes)
    grad_out = torch.randn(q.shape, generator=generator)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = attention(*leaves)
        assert out.dtype == dtype
        results.append([out, *torch.autograd.grad(out, leaves, grad_out.to(dtype))])
    for wanted, got in zip(*results, strict=True):
        assert (got.float() - wanted).norm() < 0.01 * wanted.norm()


def test_stochastic_depth_skips_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 16, eps=1e-6, drop_path=0.5)
    x = torch.randn(1, 3, 8).expand(2000, -1, -1)
    out = block.train()(x)
    skipped = (out == x).all(dim=(1, 2)).float().mean()
    assert 0.2 < skipped < 0.3  # both branches dropped
    assert torch.equal(block.eval()(x)[0], block(x)[1])
    assert not torch.equal(block(x)[0], x[0])
