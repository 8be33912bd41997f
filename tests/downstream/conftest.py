"""A pre-training checkpoint that is made, not trained, and clips small enough for tests."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgmae_cli.config import DataConfig, ModelConfig, RunConfig
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, PluginOptions
from mgmae_cli.model.videomae import build_videomae
from mgmae_cli.registry import Registry, build_registry

GRID = ClipGrid(frames=4, height=16, width=16, tubelet=2, patch=8)


def write_checkpoint(folder: Path, grid: ClipGrid = GRID, seed: int = 0) -> Path:
    """Write a run folder with a checkpoint of an untrained model, and return the folder."""
    config = RunConfig(
        data=DataConfig(source="shapes", frames=grid.frames, size=grid.height, stride=1, crop="none"),
        model=ModelConfig(name="tiny", patch=grid.patch, decoder_depth=1),
    )
    model = build_videomae("tiny", grid, seed, decoder_depth=1)
    payload = {"kind": "pretrain", "model": model.state_dict(), "config": config.model_dump(mode="json")}
    CheckpointFolder(folder / "checkpoints").save(3, payload)
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with a checkpoint of an untrained tiny model for 4 x 16 x 16 clips."""
    return write_checkpoint(tmp_path_factory.mktemp("pretrained"))


class NoiseSource(ClipSource):
    """Clips of 4 x 4 random colours, each its own, that are still: labels can only be learnt by heart."""

    name = "noise"
    needs_path = False

    class Options(PluginOptions):
        videos: int = 8
        classes: int = 8
        split: str = "train"

    options: Options

    def __len__(self) -> int:
        return self.options.videos

    @property
    def classes(self) -> list[str]:
        return [f"class {number}" for number in range(self.options.classes)]

    def label(self, index: int) -> int:
        return index % self.options.classes

    def clip_name(self, index: int) -> str:
        return f"noise:{self.options.split}:{index}"

    def load(self, index: int, request: ClipRequest) -> Clip:
        generator = torch.Generator().manual_seed(index)
        blocks = torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8, generator=generator)
        rows, cols = (torch.arange(size) * 4 // size for size in (request.height, request.width))
        frame = blocks[:, :, rows][..., cols]
        return Clip(frame.repeat(request.frames, 1, 1, 1), self.clip_name(index), self.label(index))


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Return the registry of everything installed, and `noise`."""
    registry = build_registry()
    registry.add("clip source", NoiseSource, "tests")
    return registry


def write_frames(folder: Path, count: int = 6, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    """Write a raw-frame folder of random blocks of 4 x 4 pixels, and return it."""
    folder.mkdir(parents=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (count, size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    for number, frame in enumerate(blocks.repeat(4, axis=1).repeat(4, axis=2), start=1):
        Image.fromarray(frame).save(folder / f"img_{number:05d}.png")
    return folder


def write_list(path: Path, rows: list[str], header: str = "path,label,split,group") -> Path:
    """Write a list with a header, and return it."""
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_gestures(folder: Path) -> Path:
    """Write a list like that of the gestures: six raw-frame folders of 24 x 32, two classes, sessions, splits."""
    rows = []
    for number in range(6):
        write_frames(folder / f"clip{number}", 20, seed=number, size=(24, 32))
        rows.append(f"clip{number},{'ab'[number % 2]},{number // 2},{'val' if number > 3 else 'train'}")
    return write_list(folder / "labels.csv", rows, "path,label,session,split")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def labelled_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a list of six raw-frame folders: classes a and b, four to train on and two to test on, grouped."""
    folder = tmp_path_factory.mktemp("frames")
    rows = []
    for number, (label, split, group) in enumerate(
        [*product("ab", ["train"], "1"), *product("ab", ["train"], "2"), *product("ab", ["val"], "3")]
    ):
        write_frames(folder / f"clip{number}", seed=number)
        rows.append(f"clip{number},{label},{split},{group}")
    return write_list(folder / "labels.csv", rows)
