"""Ask a classifier about every video of a set, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgmae_cli.downstream.data import Labelled, whereabouts
from mgmae_cli.downstream.metrics import Prediction, merge_views
from mgmae_cli.downstream.views import ViewDataset, ViewSpec, read_videos, run_views
from mgmae_cli.engine.distributed import Place, gather, together
from mgmae_cli.errors import DataError
from mgmae_cli.interfaces import ClipSource
from mgmae_cli.video.loader import auto_workers


@torch.no_grad()
def predict(
    model: nn.Module,
    videos: Labelled,
    spec: ViewSpec,
    merge: str,
    batch_size: int,
    on_bad: str,
    place: Place,
    workers: int | str,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> list[Prediction]:
    """Return a prediction for every video, in their order, the same on all ranks.

    Args:
        model: maps (b, 3, T, H, W) uint8 clips to scores (b, K); on the place's device, in eval mode.
        merge: of views, "prob" or "logit".
        batch_size: views a forward pass.
        on_bad: "error" stops at an unreadable video, "count" gives it no prediction.
        workers: loader processes, or "auto".

    Raises:
        DataError: an unreadable video, under "error".
    """
    mine = range(place.rank, len(videos), place.ranks)
    processes = auto_workers(place.device, place.local_ranks) if workers == "auto" else int(workers)
    read = read_videos(ViewDataset(videos.source, spec), mine, processes, pin=place.device.type == "cuda")
    predictions = []

    def scores(clips: Tensor) -> Tensor:
        with place.autocast():
            return model(clips).float()  # type: ignore[no-any-return]

    with together():  # or a rank that met an error would leave the others waiting
        for video, outputs in watch(run_views(read, scores, batch_size, place.device), len(mine)):
            if outputs is None and on_bad == "error":
                refuse_bad(videos.source, video.index, video.reason)
            merged = None if outputs is None else merge_views(outputs.cpu(), merge)
            name, label = full_name(videos.source, video.index), videos.labels[video.index]
            predictions.append(Prediction(video.index, name, label, merged, video.reason))
    if place.ranks > 1:
        predictions = [prediction for part in gather(predictions) for prediction in part]
        predictions.sort(key=lambda prediction: prediction.index)
    return predictions


def full_name(source: ClipSource, index: int) -> str:
    """Return the absolute path of a file, or how the source names the video."""
    name = source.clip_name(index)
    return str(Path(name).absolute()) if source.needs_path else name


def refuse_bad(source: ClipSource, index: int, reason: str) -> None:
    """Refuse an unreadable video.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{whereabouts(source, index)}: {reason}; a test replaces no video: mend or remove it, or count it as wrong by "
        "--on-bad count"
    )


def views_story(clips: int, crops: int, merge: str) -> str:
    """Return how videos are tested, in words."""
    if clips * crops == 1:
        return "1 clip x 1 crop"
    return f"{clips} clips x {crops} crops, merged by {'probability' if merge == 'prob' else 'logit'}"
