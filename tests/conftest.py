"""Shared fixtures: where the optional real data lies, and one thread for torch so that results repeat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # results repeat, and tiny tensors are faster so


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
