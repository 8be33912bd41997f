"""The pluggy markers and hooks. A plugin package implements any of them and names itself in entry-point group `mgmae`.

All results are collected; no hook stops at the first, so that install order never chooses the science.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from mgmae_cli.interfaces import ClipSource, FlowEstimator, MaskStrategy

hookspec = pluggy.HookspecMarker("mgmae")
hookimpl = pluggy.HookimplMarker("mgmae")


@hookspec
def mgmae_register_masks() -> list[type[MaskStrategy]]:  # type: ignore[empty-body]
    """Return the mask strategies of this plugin."""


@hookspec
def mgmae_register_flows() -> list[type[FlowEstimator]]:  # type: ignore[empty-body]
    """Return the flow estimators of this plugin."""


@hookspec
def mgmae_register_clip_sources() -> list[type[ClipSource]]:  # type: ignore[empty-body]
    """Return the clip sources of this plugin."""
