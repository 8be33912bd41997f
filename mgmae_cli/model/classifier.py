"""VideoClassifier: the encoder on all tokens, mean-pooled, with a linear head. For fine-tuning.

Paper: VideoMAE (arXiv 2203.12602), appendix. Parameter names are those of the official fine-tuning checkpoints: the
encoder's without a prefix, then `fc_norm` and `head`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.videomae import ViTSize


class VideoClassifier(VideoEncoder):
    """A video encoder with a classification head.

    Args:
        grid: how clips are cut into tokens.
        size: of the encoder; its decoder's part is not used.
        num_classes: outputs of the head.
        eps: of the blocks' norms; `fc_norm_eps` of the pooled norm, where it differs.
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
        head_dropout: dropout before the head.
        head_scale: factor on the head's initial weights.
        layer_scale: blocks carry `gamma_1` and `gamma_2`.
        checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        grid: ClipGrid,
        size: ViTSize,
        num_classes: int,
        eps: float = 1e-6,
        fc_norm_eps: float | None = None,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        head_scale: float = 0.001,
        layer_scale: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            grid,
            size.width,
            size.depth,
            size.heads,
            hidden=size.hidden,
            eps=eps,
            drop_path=drop_path,
            layer_scale=layer_scale,
            final_norm=False,
            checkpointing=checkpointing,
        )
        self.size = size
        self.num_classes = num_classes
        self.head_dropout = head_dropout
        self.fc_norm = nn.LayerNorm(size.width, eps=fc_norm_eps or eps)
        self.head = nn.Linear(size.width, num_classes)
        self._init_weights(head_scale)

    def forward(self, clip: Tensor, visible_index: Tensor | None = None) -> Tensor:
        """Return class scores (B, num_classes) of a (B, 3, T, H, W) uint8 clip.

        Args:
            visible_index: (B, V) long: encode only these tokens; None: all.
        """
        tokens = self.features(clip) if visible_index is None else super().forward(clip, visible_index)
        pooled = self.fc_norm(tokens.mean(dim=1))
        return self.head(F.dropout(pooled, self.head_dropout, self.training))  # type: ignore[no-any-return]

    def _init_weights(self, head_scale: float) -> None:
        """Draw linear weights as the official fine-tuning code does: truncated normal, 0.02, zero biases."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)
