"""VideoMAE: an encoder that sees only the visible tokens, and a small decoder that predicts the masked ones.

Papers: VideoMAE (arXiv 2203.12602), V2 (arXiv 2303.16727) for decoding only a part of the masked tokens.
Parameter names and shapes are those of the official checkpoints. Departures from the official code: tokens are gathered
before they are embedded; clips come in as uint8 and are normalised on the device, visible tokens only; the last decoder
block and the head work on the predicted tokens only. The results are equal.

Shape suffixes: B batch, T frames, H W pixels, N tokens, V visible, M decoded, P pixels a token, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.blocks import Block
from mgmae_cli.model.encoder import VideoEncoder, init_linear, run_block
from mgmae_cli.model.linear import Linear, linear
from mgmae_cli.model.tokens import position_table


@dataclass(frozen=True)
class ViTSize:
    """Widths, depths and heads of an encoder and of its decoder.

    `hidden` is the width of the MLPs as a multiple of the blocks'; `decoder_hidden`, where it differs.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int
    decoder_depth: int = 4
    hidden: float = 4.0
    decoder_hidden: float | None = None


# tiny is ours, for CPUs. The rest are VideoMAE's.
SIZES = {
    "tiny": ViTSize(128, 4, 4, 96, 3),
    "small": ViTSize(384, 12, 6, 192, 3),
    "base": ViTSize(768, 12, 12, 384, 6),
    "large": ViTSize(1024, 24, 16, 512, 8),
    "huge": ViTSize(1280, 32, 16, 512, 8),
}


def preset(name: str) -> ViTSize:
    """Return a preset's size.

    Raises:
        ConfigError: no such preset.
    """
    if name not in SIZES:
        raise ConfigError(f"model.name: {name!r}: use one of {', '.join(SIZES)}")
    return SIZES[name]


def preset_name(size: ViTSize) -> str | None:
    """Return the preset that an encoder is of, or None; its decoder may be another."""
    parts = ("width", "depth", "heads", "hidden")
    same = (name for name, known in SIZES.items() if all(getattr(known, part) == getattr(size, part) for part in parts))
    return next(same, None)


class Decoder(nn.Module):
    """Blocks over visible and mask tokens, and a head that predicts the pixels of the latter."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: float,
        outputs: int,
        eps: float,
        norm_eps: float,
        layer_scale: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            Block(width, heads, round(width * hidden), eps, layer_scale=layer_scale) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.head = nn.Linear(width, outputs)
        init_linear(self)

    def forward(self, x: Tensor, num_outputs: int) -> Tensor:
        """Return predictions (B, M, P, 3) for the last `num_outputs` = M tokens of (B, V + M, D)."""
        for block in self.blocks[:-1]:
            x = run_block(block, x, self.checkpointing)
        x = run_block(self.blocks[-1], x, self.checkpointing, num_outputs)
        return self.predict_pixels(self.norm(x))

    def predict_pixels(self, x: Tensor) -> Tensor:
        """Apply the head; return (B, M, P, 3).

        The head's outputs have colour fastest. They are computed with colour first, since targets lie so in memory, and
        returned as a view: turning round the weights is cheaper than turning round the outputs.
        """
        weight = self.head.weight.view(-1, 3, x.shape[-1]).transpose(0, 1).flatten(0, 1)
        bias = self.head.bias.view(-1, 3).t().flatten()
        return linear(x, weight, bias).reshape(*x.shape[:2], 3, -1).transpose(2, 3)


class VideoMAE(nn.Module):
    """The pre-training model.

    Args:
        grid: how clips are cut into tokens.
        size: widths, depths and heads.
        eps: of the norms; `decoder_norm_eps` of the decoder's last, where it differs.
        layer_scale: blocks carry `gamma_1` and `gamma_2`.
        final_norm: end the encoder with a norm; only some of transformers' models lack it.
        checkpointing: recompute activations in the backward pass.
    """

    decoder_positions: Tensor

    def __init__(
        self,
        grid: ClipGrid,
        size: ViTSize,
        eps: float = 1e-6,
        decoder_norm_eps: float | None = None,
        layer_scale: bool = False,
        final_norm: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.size = size
        self.encoder = VideoEncoder(
            grid,
            size.width,
            size.depth,
            size.heads,
            hidden=size.hidden,
            eps=eps,
            layer_scale=layer_scale,
            final_norm=final_norm,
            checkpointing=checkpointing,
        )
        self.encoder_to_decoder = Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.decoder_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.decoder = Decoder(
            size.decoder_width,
            size.decoder_depth,
            size.decoder_heads,
            size.decoder_hidden or size.hidden,
            grid.token_values,
            eps,
            decoder_norm_eps or eps,
            layer_scale,
            checkpointing,
        )
        table = position_table(grid.tokens, size.decoder_width)
        self.register_buffer("decoder_positions", table, persistent=False)

    def forward(self, clip: Tensor, visible_index: Tensor, decode_index: Tensor) -> Tensor:
        """Predict tokens from others.

        Args:
            clip: (B, 3, T, H, W) uint8.
            visible_index: (B, V) long, the tokens that the encoder sees.
            decode_index: (B, M) long, the tokens to predict: the masked ones, or a part of them.

        Returns:
            (B, M, P, 3), to compare with `tokens.pixel_targets`.
        """
        visible = self.encoder_to_decoder(self.encoder(clip, visible_index))
        visible = visible + self.decoder_positions[visible_index]
        masked = self.mask_token + self.decoder_positions[decode_index]
        return self.decoder(torch.cat([visible, masked], dim=1), decode_index.shape[1])  # type: ignore[no-any-return]


def build_videomae(
    name: str, grid: ClipGrid, seed: int, decoder_depth: int = 4, checkpointing: bool = False
) -> VideoMAE:
    """Return a preset with weights that depend on `seed` alone; torch's global generator is left as it was.

    Raises:
        ConfigError: no such preset.
    """
    size = replace(preset(name), decoder_depth=decoder_depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoMAE(grid, size, checkpointing=checkpointing)
