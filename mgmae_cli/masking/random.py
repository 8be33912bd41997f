"""`random`: visible tokens drawn uniformly over the whole volume (VideoMAE, arXiv 2203.12602, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from mgmae_cli.interfaces import MaskInputs, MaskStrategy
from mgmae_cli.masking.base_map import draw_visible


class RandomMask(MaskStrategy):
    """Visible tokens anywhere in space and time; as many in all as other strategies show, unequal per slot."""

    name = "random"

    def sample(self, inputs: MaskInputs) -> Tensor:
        noise = inputs.rand(inputs.batch, inputs.grid.tokens)
        return ~draw_visible(noise, self.visible_tokens(inputs.grid, inputs.ratio))
