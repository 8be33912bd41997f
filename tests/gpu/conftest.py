"""What CUDA does beyond the CPU. These tests run by `pytest --gpu -n 0 tests/gpu`, on a machine with a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from mgmae_cli.cli.app import main


@pytest.fixture(autouse=True)
def needs_a_gpu(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--gpu"):
        pytest.skip("needs a GPU: pytest --gpu -n 0 tests/gpu")
    assert torch.cuda.is_available(), "torch finds no GPU here"


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def mgmae(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs `mgmae ...` in this process and returns its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["mgmae", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run
