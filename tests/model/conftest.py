"""Small weights with nothing left at its initial value, so that a lost or swapped tensor shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.videomae import ViTSize
from mgmae_cli.model.weights import Geometry, Kind, Weights, build

GRID = ClipGrid(frames=6, height=16, width=24, tubelet=3, patch=8)  # odd on purpose: 2 slots, 2 x 3 patches
SIZE = ViTSize(24, 3, 3, 16, 2, 2, hidden=3.0, decoder_hidden=2.0)
NO_DECODER = replace(SIZE, decoder_width=0, decoder_heads=0, decoder_depth=0, decoder_hidden=None)


def shaken(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter away from its initial value; less for wide layers, so that outputs stay near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else 0.5 / parameter[0].numel() ** 0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def make_weights(kind: Kind, layer_scale: bool = False, size: ViTSize = SIZE, grid: ClipGrid = GRID) -> Weights:
    geometry = Geometry(
        grid,
        size if kind == "pretrain" else replace(size, decoder_width=0, decoder_heads=0, decoder_depth=0),
        last_eps=1e-6,
        layer_scale=layer_scale,
        final_norm=kind != "classifier",
        num_classes=5 if kind == "classifier" else 0,
    )
    model = build(geometry, kind)
    shaken(model)
    return Weights(kind, {name: t.clone() for name, t in model.state_dict().items()}, geometry, f"test {kind}")


@pytest.fixture(params=["pretrain", "classifier", "encoder"])
def weights(request: pytest.FixtureRequest) -> Weights:
    return make_weights(request.param)


def random_clip(grid: ClipGrid = GRID, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, grid.frames, grid.height, grid.width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def same_state(first: Weights, second: Weights) -> bool:
    return first.state.keys() == second.state.keys() and all(
        torch.equal(first.state[name], second.state[name]) for name in first.state
    )
