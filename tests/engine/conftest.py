"""Runs at a size that takes milliseconds: clips of 8 tokens, an encoder of one block, a clip source of noise."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from rich.console import Console

from mgmae_cli.config import Layer, set_layer
from mgmae_cli.engine.checkpoint import read_checkpoint
from mgmae_cli.engine.pretrain import PretrainResult, pretrain, resumed_settings
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.errors import UnreadableClip
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, PluginOptions
from mgmae_cli.model import videomae
from mgmae_cli.registry import Registry, build_registry
from mgmae_cli.settings import Settings, resolve_layers

MICRO = videomae.ViTSize(16, 1, 2, 8, 2)


class Noise(ClipSource):
    """Noise that depends on the video and, through the request's generator, on the epoch."""

    name = "noise"
    needs_path = False

    class Options(PluginOptions):
        videos: int = 12
        bad: list[int] = Field(default_factory=list)
        seconds: float = 0.0

    options: Options

    def __len__(self) -> int:
        return self.options.videos

    def clip_name(self, index: int) -> str:
        return f"noise {index}"

    def load(self, index: int, request: ClipRequest) -> Clip:
        time.sleep(self.options.seconds)
        if index in self.options.bad:
            raise UnreadableClip(self.clip_name(index), "broken")
        shape = (request.frames, 3, request.height, request.width)
        frames = torch.randint(256, shape, generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        frames[:, 0] = torch.randint(256, (), generator=request.generator, dtype=torch.uint8)
        return Clip(frames, self.clip_name(index))


def micro_registry() -> Registry:
    registry = build_registry(("mgmae_cli.masking.plugin", "mgmae_cli.motion.plugin"), [])
    registry.add("clip source", Noise, "tests 1.0")
    return registry


def micro_settings(out: Path, *assignments: str) -> Settings:
    base = Layer(
        "base",
        {
            "mask.name": "tube",
            "mask.ratio": 0.5,
            "data.source": "noise",
            "data.frames": 4,
            "data.size": 16,
            "data.crop": "none",
            "data.workers": 0,
            "model.name": "tiny",
            "model.patch": 8,
            "model.decoder_depth": 1,
            "train.steps": 6,
            "train.batch_size": 4,
            "train.base_lr": 0.5,
            "run.out": str(out),
            "run.device": "cpu",
            "run.log_every": 2,
        },
    )
    return resolve_layers([base, set_layer(assignments)], micro_registry())


def run_micro(out: Path, *assignments: str) -> tuple[PretrainResult, str]:
    """Train a new run in `out`; return its result and what it printed."""
    text = io.StringIO()
    result = pretrain(micro_settings(out, *assignments), console=Console(file=text, width=60))
    assert result is not None
    return result, text.getvalue()


def resume_micro(out: Path, *assignments: str) -> tuple[PretrainResult, str]:
    """Go on with the run in `out`; return its result and what it printed."""
    text = io.StringIO()
    settings = resumed_settings(out, None, set_layer(assignments), micro_registry())
    result = pretrain(settings, resume=out, console=Console(file=text, width=60))
    assert result is not None
    return result, text.getvalue()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_metrics(run)]


def saved(run: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / f"step-{step:06d}.pt")


def saved_steps(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*.pt"))


def equal(one: Any, two: Any) -> bool:
    """Compare trees of tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


@pytest.fixture(autouse=True)
def micro_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make preset `tiny` far smaller, so that a step takes milliseconds."""
    monkeypatch.setitem(videomae.SIZES, "tiny", MICRO)


@pytest.fixture
def lose_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the loss of one step, counted from 1, infinite; 0: of none."""
    infinite = [0]
    whole = PretrainTask.loss

    def loss(self: PretrainTask, batch: Any, key: tuple[int, ...]) -> torch.Tensor:
        value = whole(self, batch, key)
        return value * torch.inf if key[1] + 1 == infinite[0] else value

    monkeypatch.setattr(PretrainTask, "loss", loss)
    return lambda step: infinite.__setitem__(0, step)
