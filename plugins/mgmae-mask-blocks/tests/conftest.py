"""Test the installed package; where it is not installed, the module that lies beside these tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("mgmae_mask_blocks") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
