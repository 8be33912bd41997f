"""The built-in mask strategies, registered as any plugin registers its own."""

from __future__ import annotations

from mgmae_cli.hookspecs import hookimpl
from mgmae_cli.interfaces import MaskStrategy
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.masking.random import RandomMask
from mgmae_cli.masking.tube import TubeMask


@hookimpl
def mgmae_register_masks() -> list[type[MaskStrategy]]:
    """Return random, tube and motion."""
    return [RandomMask, TubeMask, MotionMask]
