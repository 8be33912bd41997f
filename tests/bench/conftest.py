"""Measuring at a size that takes moments: clips of 16 tokens, and a model of one narrow block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgmae_cli.bench.options import Bench, BenchOptions
from mgmae_cli.model import videomae
from mgmae_cli.registry import build_registry

TINY = {"models": ("tiny",), "frames": 4, "size": 64, "batch_size": 2, "repeats": 2, "mask_ratio": 0.75}


@pytest.fixture(autouse=True)
def micro_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make preset `tiny` far smaller; not in other processes."""
    monkeypatch.setitem(videomae.SIZES, "tiny", videomae.ViTSize(32, 2, 2, 16, 2))


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """Return a function that makes what a part is handed, from its options."""

    def make(part: str, **changes: Any) -> Bench:
        options = {**TINY, **changes}
        registry = build_registry(entry_points=[])
        return Bench(BenchOptions(parts=(part,), **options), torch.device("cpu"), registry)

    return make
