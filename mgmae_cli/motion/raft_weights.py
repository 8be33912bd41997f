"""RAFT weights: from torchvision's server, or from a file in torchvision's or princeton-vl's naming.

Both code bases hold the same networks; a file's naming is told by its keys, never by the name of the file.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError, RunError

RaftName = Literal["small", "large"]

# princeton-vl's name -> torchvision's, applied in order. Its residual blocks list a shortcut's norm twice, as `norm3`
# (`norm4` in the small model) and as `downsample.1`: the former is dropped.
_RENAMES = (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv([cf])(\d)\.", r"update_block.motion_encoder.conv\1\2.0."),
    (r"motion_encoder\.convc(\d)", r"motion_encoder.convcorr\1"),
    (r"motion_encoder\.convf(\d)", r"motion_encoder.convflow\1"),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])(\d?)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"convgru\.conv", "convgru1.conv"),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def load_raft(name: RaftName, weights: Path | None) -> Any:
    """Return torchvision's RAFT in evaluation mode, without gradients.

    Args:
        name: "small" or "large".
        weights: a file; None takes torchvision's default weights, downloaded once.

    Raises:
        RunError: the download failed.
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    from torchvision.models import optical_flow

    if weights is None:
        model = _download(name)
    else:
        model = optical_flow.raft_small() if name == "small" else optical_flow.raft_large()
        _fill(model, _read(weights), name, weights)
    _quicken_norms(model)
    return model.eval().requires_grad_(False)


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return RAFT weights under torchvision's names, from those or from princeton-vl's."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("fnet.") for key in plain):
        return plain
    small = "update_block.gru.convz.weight" in plain
    shortcut_norm = re.compile(r"layer\d\.\d\.norm4\." if small else r"layer\d\.\d\.norm3\.")
    renamed = {}
    for key, value in plain.items():
        if not shortcut_norm.search(key):
            for pattern, name in _RENAMES:
                key = re.sub(pattern, name, key)
            renamed[key] = value
    return renamed


class InstanceNorm(torch.nn.Module):
    """Instance norm without weights, in as few passes as it takes: torch's own takes half of an encoder's time."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32:  # a convolution's result, which nobody else needs
            x = x.sub_(x.mean(dim=(2, 3), keepdim=True))
            return x.mul_((x.square().mean(dim=(2, 3), keepdim=True) + 1e-5).rsqrt_())
        if x.device.type == "cpu":
            return torch.nn.functional.instance_norm(x)
        mean = x.mean(dim=(2, 3), keepdim=True, dtype=torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=torch.float32)
        scale = ((norm.square() / x[0, 0].numel() - mean.square()).clamp_min(0) + 1e-5).rsqrt()
        return torch.addcmul(-mean * scale, x, scale, out=torch.empty_like(x))


def _quicken_norms(model: torch.nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.InstanceNorm2d):
                setattr(parent, name, InstanceNorm())


def _download(name: RaftName) -> Any:
    from torchvision.models import optical_flow

    try:
        if name == "small":
            return optical_flow.raft_small(weights=optical_flow.Raft_Small_Weights.DEFAULT)
        return optical_flow.raft_large(weights=optical_flow.Raft_Large_Weights.DEFAULT)
    except (OSError, RuntimeError) as error:  # no network, no place to write, or a wrong hash
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"flow 'raft': the weights of RAFT-{name} could not be downloaded ({reason}); "
            "name a file by --set flow.options.weights=PATH, or use another flow, such as --flow dis"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"flow.options.weights = {path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"flow.options.weights = {path}: can't be read as weights ({reason})") from None
    for inner in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"flow.options.weights = {path}: holds no state dict")
    return state


def _fill(model: torch.nn.Module, state: Mapping[str, Tensor], name: RaftName, path: Path) -> None:
    state = torchvision_names(state)
    if not any(key.startswith("feature_encoder.") for key in state):
        first = next(iter(state), "nothing")
        raise CheckpointError(
            f"flow.options.weights = {path}: no RAFT weights (first key {first!r}); "
            "expected keys as in torchvision (feature_encoder.*) or princeton-vl (module.fnet.*)"
        )
    found = "large" if "mask_predictor.conv.weight" in state else "small"
    if found != name:
        raise CheckpointError(
            f"flow.options.weights = {path}: holds RAFT-{found}; add --set flow.options.model={found}"
        )
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    misshapen = sorted(key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    for problem, keys in (("lacks", missing), ("has the unknown", unknown), ("has another shape for", misshapen)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"flow.options.weights = {path}: {problem} {keys[0]!r}{more}; not RAFT-{name}")
    model.load_state_dict(state)
