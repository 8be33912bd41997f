"""transformers' VideoMAEForPreTraining as a peer: the same architecture, with our model's own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mgmae_cli.model.formats_hf import config_json, to_hf
from mgmae_cli.model.tokens import normalise_pixels
from mgmae_cli.model.videomae import VideoMAE
from mgmae_cli.model.weights import Geometry, Weights


def hf_twin(ours: VideoMAE) -> nn.Module:
    """Return transformers' model with the architecture and a copy of the weights of ours, in training mode."""
    import transformers

    weights = Weights("pretrain", ours.state_dict(), Geometry(ours.grid, ours.size), "mgmae")
    state, _ = to_hf(weights)
    with torch.random.fork_rng(devices=[]):
        model: Any = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig.from_dict(config_json(weights)))
    known = model.state_dict()
    ours_there = {name: tensor for name, tensor in state.items() if name in known}  # biases have two names
    # keys have biases in some releases of 5: without effect, and zero in ours
    of_keys = {name: torch.zeros_like(tensor) for name, tensor in known.items() if name.endswith("attention.key.bias")}
    model.load_state_dict({**of_keys, **ours_there})
    return model.train()  # type: ignore[no-any-return]


def hf_pixels(clips: Tensor) -> Tensor:
    """Return (B, 3, T, H, W) uint8 clips as what their model takes: (B, T, 3, H, W) floats, normalised."""
    return normalise_pixels(clips.movedim(1, -1)).permute(0, 1, 4, 2, 3).contiguous()
