"""`mgmae mask ...`: pictures and figures of masks, without training."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look at masks, and measure what they leak, without training.", no_args_is_help=True)
