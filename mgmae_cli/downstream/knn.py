"""k nearest neighbours over frozen features, votes weighted by similarity.

As in instance discrimination (arXiv 1805.01978) and DINO (arXiv 2104.14294): cosine similarity s, votes exp(s / tau).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_AT_A_TIME = 1024


def knn_scores(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Return each test row's share of votes per class, (M, num_classes), summing to one.

    Args:
        train: (N, D) features; labels: (N,) long.
        test: (M, D).
        k: neighbours that vote; all of them where there are fewer.
        temperature: the lower, the more the nearest count.
    """
    k = min(k, len(train))
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    scores = []
    for rows in torch.split(test, _ROWS_AT_A_TIME):
        similarity, nearest = (rows @ train.t()).topk(k, dim=1)
        weights = (similarity / temperature).softmax(dim=1)  # exp(s / tau), scaled to sum to one
        votes = torch.zeros(len(rows), num_classes, device=test.device)
        scores.append(votes.scatter_add_(1, labels[nearest], weights))
    return torch.cat(scores)
