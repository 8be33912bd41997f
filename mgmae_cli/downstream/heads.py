"""Heads on frozen features: a linear layer, or one block of cross-attention before it; and how they are trained.

The attentive head is V-JEPA's (arXiv 2404.08471, appendix): one learnt query attends to all tokens, then an MLP, both
with residuals, then a linear layer; weights start from a truncated normal, those that end a residual branch divided by
the square root of 2. Departures: AdamW and no augmentation, since features are extracted once.

Shape suffixes: B batch, N tokens, D width, K classes, A heads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mgmae_cli.model.blocks import Mlp

Array = NDArray[Any]


class LinearHead(nn.Module):
    """A linear layer on features standardised by the training set's mean and deviation.

    Args:
        mean, deviation: (D,); features that never change are left out.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("factor", torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 0.0))
        self.linear = nn.Linear(len(mean), num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, K) of features (B, D)."""
        return self.linear((x - self.mean) * self.factor)  # type: ignore[no-any-return]


class AttentiveHead(nn.Module):
    """One learnt query that attends to all tokens, then a linear layer."""

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.linear = nn.Linear(width, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.query, std=0.02)
        with torch.no_grad():
            self.proj.weight.div_(math.sqrt(2))
            self.mlp.fc2.weight.div_(math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, K) of tokens (B, N, D)."""
        batch, tokens, _ = x.shape
        query = self.query.expand(batch, -1, -1)
        q = self.q(query).view(batch, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(self.norm1(x)).view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        query = query + self.proj(attended)
        query = query + self.mlp(self.norm2(query))
        return self.linear(query[:, 0])  # type: ignore[no-any-return]


def train_head(
    head: nn.Module,
    features: Array,
    rows: list[int],
    labels: Tensor,
    lr: float,
    weight_decay: float,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
) -> nn.Module:
    """Train a head by AdamW, its rate falling to 0 along a cosine; return it in eval mode.

    Args:
        features: of all videos, on disk or in memory.
        rows: those to train on.
        labels: (len(rows),) long.
        generator: draws the order.
    """
    head = head.to(device).train()
    decayed = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    steps = epochs * math.ceil(len(rows) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(rows), generator=generator), batch_size):
            x = read_rows(features, [rows[place] for place in part.tolist()], device)
            loss = F.cross_entropy(head(x), labels[part].to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def head_scores(head: nn.Module, features: Array, rows: list[int], batch_size: int, device: torch.device) -> Tensor:
    """Return a head's scores (len(rows), K), on the CPU."""
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return torch.cat([head(read_rows(features, part, device)).float().cpu() for part in parts])


def read_rows(features: Array, rows: list[int], device: torch.device) -> Tensor:
    """Return rows of features as float32 on the device."""
    return torch.from_numpy(np.asarray(features[rows], dtype=np.float32)).to(device)
