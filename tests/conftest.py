"""Shared fixtures: where the optional real data lies, and one thread for torch so that results repeat."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # results repeat, and tiny tensors are faster so


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the tests that need a GPU, and no others")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--gpu"):  # what is tested is what CPUs do, wherever the tests run
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--gpu"):
        folder = Path(__file__).parent / "gpu"
        config.hook.pytest_deselected(items=[item for item in items if folder not in item.path.parents])
        items[:] = [item for item in items if folder in item.path.parents]


def _shared_data() -> Path | None:
    named = os.environ.get("MGMAE_SHARED")
    beside = Path(__file__).resolve().parents[2] / "shared"
    for folder in [Path(named)] if named else [beside]:
        if (folder / "data").is_dir():
            return folder / "data"
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real clips, flow and weights; skip where it is absent."""
    folder = _shared_data()
    if folder is None:
        pytest.skip("no real data: set MGMAE_SHARED to a folder with data/, or place shared/ beside the checkout")
    return folder


@pytest.fixture
def mgmae(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs `mgmae ...` in this process and returns its exit code."""
    from mgmae_cli.cli.app import main

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["mgmae", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run
