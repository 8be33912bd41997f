"""ClipGrid: how a clip is cut into tokens, and how many of them each mask ratio leaves visible.

Glossary, used everywhere:
    clip            (B, 3, T, H, W) RGB; T frames of H x W pixels
    tubelet         `tubelet` frames x `patch` x `patch` pixels: what one token covers
    slot            one tubelet step in time; S = T / tubelet slots
    patch           a token's place inside a slot; L = rows * cols patches
    token           slot-major index n = slot * L + row * cols + col; N = S * L tokens
    mask            (B, N) bool, True = masked
    visibility map  float, high where a pixel should stay visible
    base frame      the frame where a mask is drawn before it is carried through time
    hole            a place of a warped map that has no source

Budgets follow VideoMAE (arXiv 2203.12602): int(ratio * L) masked patches a slot, the rest visible.
The official MGMAE code shows one patch fewer per slot; here every strategy gets the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from mgmae_cli.errors import ConfigError


@dataclass(frozen=True)
class ClipGrid:
    """The token grid of a clip.

    Args:
        frames: T, a multiple of `tubelet`.
        height, width: pixels, multiples of `patch`.
        tubelet: frames per token.
        patch: pixels per token side.

    Raises:
        ConfigError: a size is not positive, or not divisible.
    """

    frames: int = 16
    height: int = 224
    width: int = 224
    tubelet: int = 2
    patch: int = 16

    def __post_init__(self) -> None:
        for name, key, size, step, unit in (
            ("frames", "data.frames", self.frames, self.tubelet, "model.tubelet"),
            ("height", "data.size", self.height, self.patch, "model.patch"),
            ("width", "data.size", self.width, self.patch, "model.patch"),
        ):
            if step < 1:
                raise ConfigError(f"{unit} = {step}: must be at least 1")
            if size < 1:
                raise ConfigError(f"{key}: {name} {size}: must be at least 1")
            if size % step:
                below, above = size // step * step, (size // step + 1) * step
                near = f"{below} or {above}" if below else f"{above}"
                raise ConfigError(f"{key}: {name} {size} is not a multiple of {unit} = {step}; use {near}")

    @cached_property
    def slots(self) -> int:
        """S, the number of tubelet steps in time."""
        return self.frames // self.tubelet

    @cached_property
    def rows(self) -> int:
        return self.height // self.patch

    @cached_property
    def cols(self) -> int:
        return self.width // self.patch

    @cached_property
    def patches(self) -> int:
        """L, the patches of one slot."""
        return self.rows * self.cols

    @cached_property
    def tokens(self) -> int:
        """N = S * L."""
        return self.slots * self.patches

    @cached_property
    def token_pixels(self) -> int:
        """Pixels of one token, per colour channel: tubelet * patch * patch."""
        return self.tubelet * self.patch * self.patch

    @cached_property
    def token_values(self) -> int:
        """Numbers in one token: token_pixels * 3 colour channels."""
        return self.token_pixels * 3

    def masked_per_slot(self, ratio: float) -> int:
        """Return how many patches of a slot are masked.

        Raises:
            ConfigError: the ratio leaves no visible or no masked patch.
        """
        masked = int(ratio * self.patches + 1e-9)  # 0.7 * 10 is 6.999...; it means 7
        if masked < 1 or masked >= self.patches:
            what = "masked" if masked < 1 else "visible"
            said = (
                f"mask.ratio = {ratio}: leaves no {what} patch of {self.patches} per slot ({self.rows} x {self.cols})"
            )
            if self.patches == 1:
                raise ConfigError(f"{said}; no ratio splits a single patch: use a smaller model.patch")
            low = math.ceil(1e4 / self.patches) / 1e4  # rounded so that the advice itself is accepted
            high = math.floor(1e4 * (self.patches - 1) / self.patches) / 1e4
            raise ConfigError(f"{said}; use a ratio from {low:.4f} to {high:.4f}")
        return masked

    def visible_per_slot(self, ratio: float) -> int:
        """Return K, how many patches of a slot stay visible."""
        return self.patches - self.masked_per_slot(ratio)

    def visible_tokens(self, ratio: float) -> int:
        """Return V = S * K, the visible tokens of a clip."""
        return self.slots * self.visible_per_slot(ratio)
