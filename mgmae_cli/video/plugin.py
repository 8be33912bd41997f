"""The built-in clip sources, registered like any other plugin's."""

from __future__ import annotations

from mgmae_cli.hookspecs import hookimpl
from mgmae_cli.interfaces import ClipSource


@hookimpl
def mgmae_register_clip_sources() -> list[type[ClipSource]]:
    """Return the moving shapes, and the sources that read files."""
    from mgmae_cli.video.shapes import ShapesSource
    from mgmae_cli.video.sources import FolderSource, ListSource, VideoSource

    return [ShapesSource, VideoSource, FolderSource, ListSource]
