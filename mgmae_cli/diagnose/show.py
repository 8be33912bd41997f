"""A clip under one or several masking strategies, as rows of a picture: what `mgmae mask show` draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mgmae_cli.diagnose.pictures import Row, clip_row, flow_row, mask_row, visibility_row
from mgmae_cli.diagnose.reconstruct import reconstruct
from mgmae_cli.engine.pretrain import clip_spec
from mgmae_cli.errors import ConfigError, MgmaeError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import FlowRequest, TruthFlow
from mgmae_cli.masking.masker import Masker
from mgmae_cli.model.loading import build_pretrained
from mgmae_cli.model.resize import resize_weights
from mgmae_cli.model.videomae import VideoMAE
from mgmae_cli.model.weights import Weights
from mgmae_cli.seeds import derive_generator
from mgmae_cli.settings import Settings
from mgmae_cli.video.dataset import ClipDataset

_SHOWN = 104  # what a derived generator is for


@dataclass(frozen=True)
class Strategy:
    """A labelled strategy and the settings that make it."""

    label: str
    settings: Settings


def show_masks(strategies: Sequence[Strategy], index: int = 0, model: VideoMAE | None = None) -> tuple[str, list[Row]]:
    """Return a clip's name, and its rows: frames, flow, and each strategy's visibility map, mask and reconstruction.

    Args:
        strategies: at least one; the first one's settings say which clip is read, and how.
        index: number of the video in its source.
        model: reconstructs the masked tokens, if given.

    Raises:
        MgmaeError: the clip can't be read, or a strategy can't draw on it.
    """
    settings = strategies[0].settings
    maskers = [strategy.settings.make_masker() for strategy in strategies]
    name, clip, truth = _read(settings, maskers, index)
    rows = [clip_row("frames", clip[0])]
    with_flow = next((masker for masker in maskers if masker.estimator is not None), None)
    if with_flow is not None and with_flow.estimator is not None:
        rows.append(flow_row(f"flow ({with_flow.estimator.name})", _neighbour_flow(with_flow, clip, truth)))
    for strategy, masker in zip(strategies, maskers):
        rows += _strategy_rows(strategy, masker, clip, truth, index, model)
    return name, rows


def model_for(weights: Weights, grid: ClipGrid) -> tuple[VideoMAE, list[str]]:
    """Return the pre-training model of weights for clips of a grid, in eval mode, and notes on what was changed to fit.

    Raises:
        CheckpointError: no pre-training model, or not to be fitted to the grid.
    """
    model, notes = build_pretrained(resize_weights(weights, grid))
    return model.eval(), notes


def _read(settings: Settings, maskers: Sequence[Masker], index: int) -> tuple[str, Tensor, TruthFlow | None]:
    source = settings.make_source()
    if not 0 <= index < len(source):
        raise ConfigError(f"--index {index}: the source has {len(source)} videos, 0 to {len(source) - 1}")
    truthful = next((masker for masker in maskers if masker.needs_truth), None)
    dataset = ClipDataset(source, clip_spec(settings.config), settings.config.seed, truthful, replace_bad=False)
    sample = dataset[0, index]
    if isinstance(sample, MgmaeError):
        raise sample
    return sample.name, sample.clips[:1], sample.truth


def _neighbour_flow(masker: Masker, clip: Tensor, truth: TruthFlow | None) -> Tensor:
    assert masker.estimator is not None
    frames = torch.arange(clip.shape[2])[None]
    with torch.no_grad():
        return masker.estimator.estimate(FlowRequest(clip, frames[:, :-1], frames[:, 1:], truth))[0]


def _strategy_rows(
    strategy: Strategy, masker: Masker, clip: Tensor, truth: TruthFlow | None, index: int, model: VideoMAE | None
) -> list[Row]:
    def generator() -> torch.Generator:
        return derive_generator(strategy.settings.config.seed, index, _SHOWN)

    rows = []
    with torch.no_grad():
        visibility = masker.strategy.visibility(masker.inputs(clip, generator(), truth))
    mask = masker(clip, generator(), truth)
    share = f"{int((~mask).sum())} of {mask.shape[1]}\ntokens visible"
    if visibility is not None:
        rows.append(visibility_row(f"{strategy.label}\nvisibility map", visibility[0]))
    rows.append(mask_row(f"{strategy.label}\n{share}", clip[0], mask[0], masker.grid))
    if model is not None:
        rows.append(clip_row(f"{strategy.label}\nreconstruction", reconstruct(model, clip, mask)[0]))
    return rows
