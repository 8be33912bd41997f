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

SCORES_AT_A_TIME = 5_000_000  # 10 MB in bfloat16: of 1568 tokens, as 16 frames of 224 x 224 have, two heads'


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
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v) if has_amx() else _chunked_forward(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        batch_and_heads = q.shape[:2]
        q, k, v, grad_out = _by_head(q * scale, k, v, grad_out)
        # A transposed matrix is slow on the left of a product, and scores are large: so what is small is turned round,
        # and the gradients of k and v come out so.
        q_t, grad_out_t = (x.transpose(1, 2).contiguous() for x in (q, grad_out))
        grad_q = torch.empty_like(q)
        sums = torch.float32 if _chunk_size(q, k)[1] < q.shape[1] else q.dtype  # of products over parts of the queries
        grad_k_t, grad_v_t = (x.new_zeros(len(x), x.shape[2], x.shape[1], dtype=sums) for x in (k, v))
        for heads, queries, scores, weights in _chunks(q, k):
            here, here_t = (heads, queries), (heads, slice(None), queries)
            torch.bmm(q[here], k[heads].transpose(1, 2), out=scores)
            torch.softmax(scores, dim=-1, out=weights)
            _add_product(grad_out_t[here_t], weights, grad_v_t[heads])
            grad_scores = torch.bmm(grad_out[here], v[heads].transpose(1, 2), out=scores)
            torch.ops.aten._softmax_backward_data(grad_scores, weights, -1, q.dtype, grad_input=grad_scores)
            torch.bmm(grad_scores, k[heads], out=grad_q[here])
            _add_product(q_t[here_t], grad_scores, grad_k_t[heads])
        grad_k, grad_v = (x.to(q.dtype).transpose(1, 2) for x in (grad_k_t, grad_v_t))
        return tuple(x.unflatten(0, batch_and_heads) for x in (grad_q * scale, grad_k, grad_v))


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
