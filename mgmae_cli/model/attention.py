"""Attention: torch's fused kernel, and a faster way for bfloat16 on CPUs.

On CPUs torch's fused kernel reaches a tenth of the machine's bfloat16 matrix rate, and its backward pass less. Plain
matrix products over a few heads at a time, in the same memory, are up to three times as fast. Where the CPU has tiles
for bfloat16 (AMX) torch's forward pass uses them and is the faster: it is taken there. As in the fused kernel the
scores are not kept but computed again in the backward pass, so that memory stays linear in the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mgmae_cli.processor import has_amx

SCORES_AT_A_TIME = 2_500_000  # 5 MB in bfloat16; 1568 tokens, as 16 frames of 224 x 224 have, fit as a whole


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
        out = F.scaled_dot_product_attention(q, k, v) if has_amx() else _chunked_forward(q, k, v)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        shapes = [x.shape for x in (q, k, v)]
        # rowsum(P * dP) = rowsum(O * dO), as in FlashAttention (arXiv 2205.14135)
        row = (grad_out.float() * out).sum(dim=-1, keepdim=True).to(q.dtype).flatten(0, 1)
        q, k, v, grad_out = _by_head(q * scale, k, v, grad_out)
        grad_q = torch.empty_like(q)
        in_parts = _chunk_size(q, k)[1] < q.shape[1]
        grad_k, grad_v = (torch.zeros_like(x, dtype=torch.float32 if in_parts else None) for x in (k, v))
        for heads, queries, scores, weights in _chunks(q, k):
            here = heads, queries
            torch.bmm(q[here], k[heads].transpose(1, 2), out=scores)
            torch.softmax(scores, dim=-1, out=weights)
            _add_product(weights.transpose(1, 2), grad_out[here], grad_v[heads])
            grad_scores = torch.bmm(grad_out[here], v[heads].transpose(1, 2), out=scores)
            grad_scores.sub_(row[here]).mul_(weights)
            torch.bmm(grad_scores, k[heads], out=grad_q[here])
            _add_product(grad_scores.transpose(1, 2), q[here], grad_k[heads])
        grads = grad_q * scale, grad_k.to(q.dtype), grad_v.to(q.dtype)
        return tuple(grad.view(shape) for grad, shape in zip(grads, shapes, strict=True))


def _chunked_forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shape = q.shape
    q, k, v = _by_head(q * shape[-1] ** -0.5, k, v)
    out = torch.empty_like(q)
    for heads, queries, scores, weights in _chunks(q, k):
        torch.bmm(q[heads, queries], k[heads].transpose(1, 2), out=scores)
        torch.softmax(scores, dim=-1, out=weights)
        torch.bmm(weights, v[heads], out=out[heads, queries])
    return out.view(shape)


def _by_head(*tensors: Tensor) -> list[Tensor]:
    """Return (B, A, N, E) as (B A, N, E), each head's values side by side."""
    return [x.flatten(0, 1).contiguous() for x in tensors]


def _add_product(left: Tensor, right: Tensor, total: Tensor) -> None:
    if total.dtype == left.dtype:
        torch.bmm(left, right, out=total)
    else:
        total += torch.bmm(left, right)


def _chunk_size(q: Tensor, k: Tensor) -> tuple[int, int]:
    """Return how many heads, and queries of each, have their scores made at a time: whole heads, or a part of one."""
    num_heads, num_queries, num_keys = q.shape[0], q.shape[1], k.shape[1]
    heads = max(1, SCORES_AT_A_TIME // (num_queries * num_keys))
    parts = math.ceil(num_queries * num_keys / SCORES_AT_A_TIME) if heads == 1 else 1
    return min(heads, num_heads), math.ceil(num_queries / parts)


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield heads, queries, and room for their scores and weights: the same for all, as fresh memory takes longer."""
    heads, queries = _chunk_size(q, k)
    scores, weights = (q.new_empty(heads, queries, k.shape[1]) for _ in range(2))
    for head in range(0, q.shape[0], heads):
        for query in range(0, q.shape[1], queries):
            here = slice(head, head + heads), slice(query, query + queries)
            num_heads, num_queries = q[here].shape[:2]
            yield *here, scores[:num_heads, :num_queries], weights[:num_heads, :num_queries]
