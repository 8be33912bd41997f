"""Estimate how long cells take on this machine, by timing a few clips: for planning, not for reporting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from mgmae_cli.ablation.evaluate import NEED_TRAINING
from mgmae_cli.ablation.grid import Cell
from mgmae_cli.ablation.recipe import Evaluations
from mgmae_cli.engine import distributed
from mgmae_cli.engine.pretrain import clip_spec, pretrain_job
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.errors import MgmaeError
from mgmae_cli.video.dataset import ClipDataset
from mgmae_cli.video.loader import collate

_CLIPS = 4
_REPEATS = 3
_LEAKAGE_SECONDS = 0.15  # a clip's tracks and figures, roughly


def estimate_cells(cells: Sequence[Cell], evaluate: Evaluations) -> dict[str, float | MgmaeError]:
    """Return seconds a run by cell, or why it can't run; what differs little between cells is timed for each anew."""
    found: dict[str, float | MgmaeError] = {}
    for cell in cells:
        try:
            found[cell.name] = _estimate(cell, evaluate)
        except MgmaeError as error:  # such as weights that are not there: the other cells can run
            found[cell.name] = error
    return found


def _estimate(cell: Cell, evaluate: Evaluations) -> float:
    config = cell.settings.config
    place = distributed.find_place(config.run.device, config.run.precision)
    masker = cell.settings.make_masker()
    model = pretrain_job(cell.settings, masker, place)[1]
    dataset = ClipDataset(cell.settings.make_source(), replace(clip_spec(config), repeats=1), 0, masker)
    videos = len(dataset)
    samples: list[Any] = []
    read = _median_seconds(lambda: samples.append(dataset[0, len(samples)]), min(1 + _CLIPS, videos))
    batch = collate(samples)
    if isinstance(batch, MgmaeError):
        raise batch
    batch = batch.to(place.device)
    task = PretrainTask(model, masker, config.model.decoder_mask == "running_cell")

    def step() -> None:
        with place.autocast():
            loss = task.loss(batch, (0, 0))
        torch.autograd.backward(loss)
        place.wait()

    every = torch.arange(masker.grid.tokens, device=place.device).expand(len(batch.names), -1)

    @torch.no_grad()
    def encode() -> None:
        with place.autocast():
            model.encoder(batch.clips, every)
        place.wait()

    train, whole = (_median_seconds(work, 1 + _REPEATS) / len(batch.names) for work in (step, encode))
    seconds = cell.effort.clips_seen * (train + read) if NEED_TRAINING & set(evaluate) else 0.0
    return seconds + sum(_evaluation(name, settings, read, whole, videos) for name, settings in evaluate.items())


def _evaluation(name: str, settings: Mapping[str, Any], read: float, whole: float, videos: int) -> float:
    if name == "leakage":
        return float(settings.get("clips", 64)) * (read + _LEAKAGE_SECONDS)
    if name == "reconstruction":
        return 2 * float(settings.get("clips", 64)) * (read + whole)
    if name == "loss":
        return 0.0
    train = float(settings.get("data.options.clips", videos))
    test = float(settings.get("val.options.clips", train))
    if name != "finetune":
        return (train + test) * (read + whole)
    epochs = float(settings.get("train.epochs", 30))
    steps, batch = settings.get("train.steps"), float(settings.get("train.batch_size", 16))
    seen = float(steps) * batch if steps is not None else epochs * train
    tests = max(1.0, (seen / train) / float(settings.get("train.validate_every", 1)))
    return seen * (read + 3 * whole) + tests * test * (read + whole)


def _median_seconds(work: Callable[[], object], times: int) -> float:
    """Return the median time of `work`, without the first time, which opens files and loads libraries."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:] or seconds)
