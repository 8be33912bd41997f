"""Features that are extracted once and kept, under keys made of contents.

A key holds a hash of the weights, of the videos (paths, sizes and times of change; options of sources that make their
clips), of one video's pixels as they are really read, and of how clips are taken. So a file that changes, a decoder
that reads otherwise, or a checkpoint that is written over never brings back old features; a copied checkpoint finds
those of the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgmae_cli import __version__
from mgmae_cli.config import SPEED_OPTIONS
from mgmae_cli.downstream.data import video_key
from mgmae_cli.downstream.features import Extractor, Form, write_features
from mgmae_cli.downstream.heads import Array
from mgmae_cli.downstream.views import ViewDataset, read_views
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import UnreadableClip
from mgmae_cli.interfaces import ClipSource

_FORMAT = 1


@dataclass(frozen=True)
class FeatureTable:
    """One layer's features of all videos of a source.

    Args:
        values: (videos, D) or (videos, N, D), mapped from disk; nan for unreadable videos.
        bad: reasons, by number of the video.
        cached: it was there already.
    """

    values: Array
    bad: Mapping[int, str]
    cached: bool


def cached_features(
    dataset: ViewDataset,
    extractor: Extractor,
    layers: Sequence[str],
    form: Form,
    cache: Path,
    place: Place,
    batch_size: int,
    workers: int,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
    on_bad: Callable[[int, str], None] = lambda index, reason: None,
) -> dict[str, FeatureTable]:
    """Return features by layer, from the cache where they are there, else extracted and kept.

    Args:
        form: dense features are kept as float16.
        cache: a folder; made if need be.
        on_bad: told of an unreadable video's number and reason; may raise.

    Raises:
        RunError: the cache can't be written.
    """
    source = source_identity(dataset)
    keys = {}
    for layer in layers:
        identity = {"format": _FORMAT, "layer": layer, "form": form, "from": extractor.identity, "clips": source}
        keys[layer] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    missing = [layer for layer in layers if not (cache / f"{keys[layer]}.json").is_file()]
    if missing:
        partial = {layer: cache / f".{keys[layer]}.{os.getpid()}.partial.npy" for layer in missing}
        dtype = "float32" if form == "pooled" else "float16"
        try:
            bad = write_features(
                dataset,
                extractor,
                form,
                partial,
                dtype,
                place,
                batch_size,
                workers,
                watch,
                on_bad,
            )
            for layer in missing:
                partial[layer].replace(cache / f"{keys[layer]}.npy")
                about = {"layer": layer, "form": form, "bad": bad}
                replace_text(cache / f"{keys[layer]}.json", json.dumps(about))
        finally:
            for path in partial.values():
                path.unlink(missing_ok=True)
    tables = {}
    for layer in layers:
        about = json.loads((cache / f"{keys[layer]}.json").read_text())
        values = np.load(cache / f"{keys[layer]}.npy", mmap_mode="r")
        reasons = {int(index): reason for index, reason in about["bad"].items()}
        for index, reason in reasons.items():
            on_bad(index, reason)
        tables[layer] = FeatureTable(values, reasons, layer not in missing)
    return tables


def source_identity(dataset: ViewDataset) -> dict[str, Any]:
    """Return what a dataset's clips depend on."""
    source = dataset.source
    found = hashlib.sha256()
    for index in range(len(source)):
        found.update(repr(_video_identity(source, index)).encode())
    return {
        "mgmae": __version__,
        "source": source.name,
        "options": source.options.model_dump(mode="json", exclude=set(SPEED_OPTIONS)),
        "videos": found.hexdigest(),
        "view": asdict(dataset.spec),
        "sample": _sample(dataset),
    }


def _video_identity(source: ClipSource, index: int) -> tuple[object, ...]:
    if not source.needs_path:
        return (source.clip_name(index),)
    try:
        stat = Path(source.clip_name(index)).stat()
    except OSError:
        return video_key(source, index)
    return (*video_key(source, index), stat.st_size, stat.st_mtime_ns)


def _sample(dataset: ViewDataset) -> str:
    """Return a hash of the first readable video's pixels: of what decoders and generators really do."""
    for index in range(len(dataset)):
        try:
            views = read_views(dataset.source, index, dataset.spec)
        except UnreadableClip:
            continue
        return hashlib.sha256(views.numpy().tobytes()).hexdigest()
    return ""


def default_cache() -> Path:
    """Return where features are kept when nobody says: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mgmae" / "features"
