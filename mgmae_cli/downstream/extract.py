"""`features`: write an encoder's features of videos to files, with an index. Callable from a notebook.

Writes `index.csv` (row, path, label, class, unreadable), `features.json` (what they are), `config.yaml`, and the
features: `features-LAYER.npy`, or all layers in one `features.safetensors`. Row r is video r of the source; rows of
unreadable videos are nan.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from mgmae_cli.config import Layer, dump
from mgmae_cli.downstream.config import FeaturesConfig
from mgmae_cli.downstream.encoder import LoadedEncoder, load_encoder
from mgmae_cli.downstream.evaluate import new_folder
from mgmae_cli.downstream.features import make_extractor, write_features
from mgmae_cli.downstream.predict import full_name, refuse_bad
from mgmae_cli.downstream.settings import (
    Resolved,
    checkpoint_of,
    open_train,
    resolve_config,
    view_spec,
    watcher,
)
from mgmae_cli.downstream.views import ViewDataset
from mgmae_cli.engine import distributed
from mgmae_cli.engine.progress import settings_table
from mgmae_cli.engine.run import device_facts
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import ConfigError, RunError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import ClipSource
from mgmae_cli.registry import Registry
from mgmae_cli.settings import given_layers
from mgmae_cli.video.loader import auto_workers


@dataclass(frozen=True)
class ExtractRun:
    """A validated extraction: its config, its clip source, and the encoder."""

    resolved: Resolved[FeaturesConfig]
    loaded: LoadedEncoder

    @property
    def config(self) -> FeaturesConfig:
        return self.resolved.config


def resolve_extract(
    recipe: Path | None = None,
    flags: Layer | None = None,
    assignments: Sequence[str] = (),
    registry: Registry | None = None,
) -> ExtractRun:
    """Resolve an extraction; clips are read as in the checkpoint's training unless something else is said.

    Raises:
        MgmaeError: settings that are wrong, or a checkpoint that can't be used.
    """
    layers = given_layers(recipe, flags, assignments)
    loaded = load_encoder(checkpoint_of(layers, "features"))
    trained = [Layer(f"checkpoint {loaded.path}", loaded.reading)]
    resolved = resolve_config(FeaturesConfig, layers, trained=trained, registry=registry)
    config = resolved.config
    if config.features.form == "dense" and config.views.clips * config.views.crops > 1:
        raise resolved.problem("views.clips: dense features are of one view; drop views.clips and views.crops")
    return ExtractRun(resolved, loaded)


def extract(run: ExtractRun, console: Console | None = None) -> Path:
    """Extract features as the settings say; return the folder that holds them.

    Raises:
        MgmaeError: anything the user can mend.
    """
    console = console or Console(stderr=True, emoji=False)
    config = run.config
    place = distributed.find_place(config.run.device, config.run.precision)
    try:
        if place.ranks > 1:
            raise ConfigError("mgmae features runs as one process; start it without torchrun or srun's --ntasks")
        source = open_train(run.resolved)
        data, trained, wanted = config.data, run.loaded.geometry.grid, config.features
        grid = ClipGrid(data.frames, data.height, data.width, trained.tubelet, trained.patch)
        extractor = make_extractor(run.loaded, grid, wanted.layers, place, config.baseline, config.seed)
        layers = ("pixels",) if config.baseline == "pixels" else wanted.layers
        folder = new_folder(config.run.out, run.loaded.path, "features")
        facts = [
            (
                "features",
                "raw pixels" if config.baseline == "pixels" else f"{run.loaded.path} ({run.loaded.weights.origin})",
            ),
            ("baseline", config.baseline),
            device_facts(place),
            ("data", f"{len(source)} videos from {data.path or data.source}"),
            ("form", f"{wanted.form}, {wanted.dtype}, layers {', '.join(layers)}"),
            *[("note", note) for note in extractor.notes],
            ("folder", str(folder)),
        ]
        console.print(settings_table("mgmae features", facts), soft_wrap=True)
        files = {layer: folder / f"features-{layer}.npy" for layer in layers}
        workers = auto_workers(place.device) if data.workers == "auto" else data.workers
        bad = write_features(
            ViewDataset(source, view_spec(data, config.views)),
            extractor,
            wanted.form,
            files,
            wanted.dtype,
            place,
            config.views.batch_size,
            workers,
            watcher(console, "features"),
            None if config.views.on_bad == "count" else lambda index, reason: refuse_bad(source, index, reason),
        )
        shape = list(np.load(files[layers[0]], mmap_mode="r").shape)
        if wanted.format == "safetensors":
            _join(files, folder / "features.safetensors")
        _describe(run, source, folder, bad, shape, layers)
        return folder
    finally:
        distributed.leave()


def _join(files: Mapping[str, Path], target: Path) -> None:
    """Move layers' npy files into one of safetensors, which is written from memory.

    Raises:
        RunError: it can't be written.
    """
    from safetensors.numpy import save_file

    try:
        save_file({layer: np.load(path) for layer, path in files.items()}, target)
    except (OSError, MemoryError) as error:
        raise RunError(f"{target}: can't be written: {error}; the features lie beside it as npy") from error
    for path in files.values():
        path.unlink()


def _describe(
    run: ExtractRun,
    source: ClipSource,
    folder: Path,
    bad: Mapping[int, str],
    shape: list[int],
    layers: Sequence[str],
) -> None:
    """Write the index and what the features are."""
    config, names = run.config, source.classes
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("row", "path", "label", "class", "unreadable"))
    for index in range(len(source)):
        label = source.label(index)
        known = ("", "") if label is None or names is None else (label, names[label])
        table.writerow((index, full_name(source, index), *known, bad.get(index, "")))
    replace_text(folder / "index.csv", text.getvalue())
    about = {
        "checkpoint": str(run.loaded.path),
        "weights": run.loaded.weights.describe(),
        "digest": run.loaded.digest(),
        "baseline": config.baseline,
        "layers": list(layers),
        "shape": shape,
        "axes": ["video", "width"] if config.features.form == "pooled" else ["video", "token", "width"],
        "dtype": config.features.dtype,
        "unreadable": len(bad),
    }
    replace_text(folder / "features.json", json.dumps(about, indent=2) + "\n")
    header = "Resolved settings of these features; again: mgmae features --recipe config.yaml --out NEW_FOLDER"
    replace_text(folder / "config.yaml", dump(config, header))
