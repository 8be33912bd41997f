"""The transformer block of VideoMAE, with the parameter names of its official checkpoints.

Departures from the official code: fused attention, and a block may be asked for its last tokens only. The decoder's
last block needs no outputs at visible tokens, so it makes none: their queries, projection and MLP are skipped, with the
same results for the rest. timm's BEiT block has the same parameters but can't do that.

Shape suffixes: B batch, N tokens, M tokens wanted, D width, A heads, E width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgmae_cli.model.attention import attention
from mgmae_cli.model.linear import Linear, linear


class Attention(nn.Module):
    """Multi-head self-attention with biases on queries and values.

    A bias on keys adds the same number to all logits of a query, which softmax ignores: there is none.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, num_outputs: int) -> Tensor:
        """Attend from the last `num_outputs` tokens of (B, N, D) to all of them; return (B, num_outputs, D)."""
        batch, num_tokens, width = x.shape
        no_bias = torch.zeros_like(self.v_bias)
        if num_outputs == num_tokens:
            qkv = linear(x, self.qkv.weight, torch.cat([self.q_bias, no_bias, self.v_bias]))
            q, k, v = qkv.reshape(batch, num_tokens, 3, self.heads, -1).unbind(2)
        else:
            weight_q, weight_kv = torch.split(self.qkv.weight, [width, 2 * width])
            q = linear(x[:, -num_outputs:], weight_q, self.q_bias).reshape(batch, num_outputs, self.heads, -1)
            kv = linear(x, weight_kv, torch.cat([no_bias, self.v_bias]))
            k, v = kv.reshape(batch, num_tokens, 2, self.heads, -1).unbind(2)
        x = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = self.proj(x.transpose(1, 2).flatten(2))
        return x


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(x)))
        return x


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals, optional layer scale and stochastic depth.

    Args:
        hidden: width of the MLP.
        eps: of the norms.
        drop_path: chance that a sample skips a branch in training.
        layer_scale: with `gamma_1` and `gamma_2`, as some checkpoints have.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float, drop_path: float = 0.0, layer_scale: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.drop_path = drop_path
        self.layer_scale = layer_scale
        if layer_scale:
            self.gamma_1 = nn.Parameter(torch.ones(width))
            self.gamma_2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """Return the last `num_outputs` tokens (default all) of (B, N, D), each having attended to all N."""
        wanted = x.shape[1] if num_outputs is None else num_outputs
        branch = self.attn(self.norm1(x), wanted)
        x = x[:, -wanted:] + self._dropped(branch * self.gamma_1 if self.layer_scale else branch)
        branch = self.mlp(self.norm2(x))
        x = x + self._dropped(branch * self.gamma_2 if self.layer_scale else branch)
        return x

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
        return branch * kept / keep
