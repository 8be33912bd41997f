"""`tube`: one set of visible patches, repeated in every slot (VideoMAE, arXiv 2203.12602, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from mgmae_cli.interfaces import MaskInputs, MaskStrategy
from mgmae_cli.masking.base_map import draw_visible


class TubeMask(MaskStrategy):
    """The same random patches visible in every slot."""

    name = "tube"

    def sample(self, inputs: MaskInputs) -> Tensor:
        visible = draw_visible(inputs.rand(inputs.batch, inputs.grid.patches), inputs.visible_per_slot)
        return ~visible.repeat(1, inputs.grid.slots)
