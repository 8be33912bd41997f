"""What CUDA does beyond the CPU. These tests run by `pytest --gpu -n 0 tests/gpu`, on a machine with a GPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def needs_a_gpu(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--gpu"):
        pytest.skip("needs a GPU: pytest --gpu -n 0 tests/gpu")
    assert torch.cuda.is_available(), "torch finds no GPU here"


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", 0)
