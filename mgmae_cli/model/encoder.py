"""The ViT that sees tokens of a clip: the visible ones in pre-training, all of them afterwards.

Paper: VideoMAE (arXiv 2203.12602). Departures from the official code: tokens are gathered before they are embedded, and
clips come in as uint8 and are normalised on the device. The results are equal.

Shape suffixes: B batch, T frames, H W pixels, N tokens, V visible, D width, t frames and p pixels a side of a token.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.blocks import Block
from mgmae_cli.model.linear import linear
from mgmae_cli.model.tokens import all_tokens, gather_tokens, normalise_pixels, position_table


class TubeletEmbed(nn.Module):
    """A linear map of each token's pixels, kept as the Conv3d that official checkpoints hold."""

    def __init__(self, tubelet: int, patch: int, width: int) -> None:
        super().__init__()
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed (B, V, t, p, p, 3) uint8 tokens as (B, V, D)."""
        pixels = normalise_pixels(tokens).permute(0, 1, 5, 2, 3, 4).flatten(2)
        return linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class VideoEncoder(nn.Module):
    """The ViT that sees tokens of a clip: the visible ones in pre-training, all of them afterwards.

    Args:
        grid: how clips are cut into tokens.
        hidden: width of the MLPs as a multiple of `width`.
        eps: of all norms.
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
        layer_scale: blocks carry `gamma_1` and `gamma_2`.
        final_norm: end with a norm; False where a classifier norms the pooled tokens instead.
        checkpointing: recompute activations in the backward pass.
    """

    positions: Tensor

    def __init__(
        self,
        grid: ClipGrid,
        width: int,
        depth: int,
        heads: int,
        hidden: float = 4.0,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        layer_scale: bool = False,
        final_norm: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.width = width
        self.heads = heads
        self.checkpointing = checkpointing
        self.patch_embed = TubeletEmbed(grid.tubelet, grid.patch, width)
        rates = [drop_path * number / max(depth - 1, 1) for number in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, round(width * hidden), eps, drop_path=rate, layer_scale=layer_scale) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=eps) if final_norm else nn.Identity()
        self.register_buffer("positions", position_table(grid.tokens, width), persistent=False)
        init_linear(self.blocks)

    def forward(self, clip: Tensor, visible_index: Tensor) -> Tensor:
        """Encode the tokens (B, V) named by `visible_index` of a (B, 3, T, H, W) uint8 clip; return (B, V, D)."""
        tokens = gather_tokens(clip, visible_index, self.grid.tubelet, self.grid.patch)
        x = self.patch_embed(tokens) + self.positions[visible_index]
        for block in self.blocks:
            x = run_block(block, x, self.checkpointing)
        return self.norm(x)  # type: ignore[no-any-return]

    def features(self, clip: Tensor, layer: int | None = None) -> Tensor:
        """Encode all tokens of a (B, 3, T, H, W) uint8 clip; return (B, N, D).

        Args:
            layer: return the output of this block (1 to depth; 0 is the embedding) without the final norm; None: the
                encoder's output.
        """
        if layer is not None:
            return self.hidden_states(clip, [layer])[0]
        x = self.hidden_states(clip, [len(self.blocks)])[0]
        return self.norm(x)  # type: ignore[no-any-return]

    def hidden_states(self, clip: Tensor, layers: Collection[int]) -> list[Tensor]:
        """Return the outputs (B, N, D) of several blocks, in rising order, without the final norm.

        Args:
            clip: (B, 3, T, H, W) uint8.
            layers: block numbers from 1 to depth; 0 is the embedding.

        Raises:
            ConfigError: a layer that the encoder does not have.
        """
        wrong = [layer for layer in layers if not 0 <= layer <= len(self.blocks)]
        if wrong:
            raise ConfigError(f"layer {wrong[0]}: the encoder has layers 0 (embedding) to {len(self.blocks)}")
        tokens = all_tokens(clip, self.grid.tubelet, self.grid.patch)
        x = self.patch_embed(tokens) + self.positions
        states = [x] if 0 in layers else []
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = run_block(block, x, self.checkpointing)
            if number in layers:
                states.append(x)
        return states


def run_block(block: nn.Module, x: Tensor, checkpointing: bool, num_outputs: int | None = None) -> Tensor:
    """Call a block, keeping or recomputing its activations."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, num_outputs, use_reentrant=False)  # type: ignore[no-any-return]
    return block(x, num_outputs)  # type: ignore[no-any-return]


def init_linear(module: nn.Module) -> None:
    """Draw linear layers from Xavier's uniform distribution with zero biases, as VideoMAE does in pre-training.

    The tubelet embedding and `encoder_to_decoder` keep torch's own initialisation there, and so here.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
