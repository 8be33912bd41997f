"""Export an encoder as a torch.export program: no mgmae needed to run it, no TorchScript.

The program takes (B, 3, T, H, W) uint8 clips, any B, and returns (B, N, D) features.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from mgmae_cli.errors import CheckpointError
from mgmae_cli.model.encoder import VideoEncoder

TOLERANCE = 1e-4


class _Features(nn.Module):
    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clip: Tensor) -> Tensor:
        return self.encoder.features(clip)


def export_encoder(encoder: VideoEncoder, out: Path) -> float:
    """Write a program and check it on random clips.

    Args:
        encoder: in float32, on the CPU.
        out: a new file, ending in .pt2.

    Returns:
        The largest difference between the program's features and the encoder's.

    Raises:
        CheckpointError: `out` is taken or can't be written, or the features differ.
    """
    if out.exists():
        raise CheckpointError(f"{out}: is there already; nothing is overwritten: choose another name")
    if out.suffix != ".pt2":
        raise CheckpointError(f"{out}: torch.export's programs are named *.pt2; choose {out.with_suffix('.pt2')}")
    module = _Features(encoder).eval()
    grid = encoder.grid
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, grid.frames, grid.height, grid.width)
    clips = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(module, (clips[:2],), dynamic_shapes=({0: batch},))
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial.pt2")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, partial)
        loaded = torch.export.load(partial).module()
        with torch.no_grad():
            difference = float((loaded(clips) - module(clips)).abs().max())
        if not difference <= TOLERANCE:
            raise CheckpointError(f"{out}: not written: the exported features differ by {difference:g}")
        partial.rename(out)
    except (OSError, RuntimeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise CheckpointError(f"{out}: not written: {reason}") from error
    finally:
        if partial.exists():
            partial.unlink()
    return difference
