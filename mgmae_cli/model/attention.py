"""Attention: torch's fused kernel, and a faster way for bfloat16 on CPUs.

On CPUs torch's fused kernel reaches a tenth of the machine's bfloat16 matrix rate, and its backward pass less. Plain
matrix products over a few heads at a time, whose scores stay in the cache, are two to three times as fast
(1568 tokens, heads of 64: 39 against 75 ms a clip for both passes, one core). As in the fused kernel the scores are not
kept but computed again in the backward pass, so that memory stays linear in the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SCORES_AT_A_TIME = 1_000_000  # 2 MB in bfloat16: they stay in a core's own cache


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(E)) v.

    Args:
        q: (B, A, M, E): batch, heads, tokens, width of a head.
        k, v: (B, A, N, E).

    Returns:
        (B, A, M, E).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        return _ChunkedAttention.apply(q, k, v)  # type: ignore[no-any-return]
    return F.scaled_dot_product_attention(q, k, v)


class _ChunkedAttention(torch.autograd.Function):
    """Attention over a few heads at a time, or over some queries of one head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = q.shape
        ctx.scale = shape[-1] ** -0.5
        q, k, v = (x.flatten(0, 1).contiguous() for x in (q * ctx.scale, k, v))
        out = torch.empty_like(q)
        for heads, queries in _chunks(q, k):
            weights = _weights(q[heads, queries], k[heads])
            torch.bmm(weights, v[heads], out=out[heads, queries])
        ctx.save_for_backward(q, k, v, out)
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = ctx.saved_tensors
        shapes = [(*grad_out.shape[:2], *x.shape[1:]) for x in (q, k, v)]
        grad_out = grad_out.flatten(0, 1).contiguous()
        # rowsum(P * dP) = rowsum(O * dO), as in FlashAttention (arXiv 2205.14135)
        row = (grad_out.float() * out).sum(dim=-1, keepdim=True).to(q.dtype)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for heads, queries in _chunks(q, k):
            here = heads, queries
            weights = _weights(q[here], k[heads])
            grad_v[heads] += torch.bmm(weights.transpose(1, 2), grad_out[here])
            grad_scores = torch.bmm(grad_out[here], v[heads].transpose(1, 2)).sub_(row[here]).mul_(weights)
            torch.bmm(grad_scores, k[heads], out=grad_q[here])
            grad_k[heads] += torch.bmm(grad_scores.transpose(1, 2), q[here])
        grads = grad_q * ctx.scale, grad_k.to(q.dtype), grad_v.to(q.dtype)
        return tuple(grad.view(shape) for grad, shape in zip(grads, shapes))


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1)


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield heads and queries whose scores are made at a time: whole heads, or equal parts of one."""
    num_heads, num_queries, num_keys = q.shape[0], q.shape[1], k.shape[1]
    heads = max(1, SCORES_AT_A_TIME // (num_queries * num_keys))
    parts = math.ceil(num_queries * num_keys / SCORES_AT_A_TIME) if heads == 1 else 1
    queries = math.ceil(num_queries / parts)
    for head in range(0, num_heads, heads):
        for query in range(0, num_queries, queries):
            yield slice(head, head + heads), slice(query, query + queries)
