"""`mgmae plugins`."""

from __future__ import annotations

from typing import Annotated

import typer


def plugins(
    names: Annotated[
        list[str] | None, typer.Argument(help="Show only these masks, flows or clip sources.", show_default=False)
    ] = None,
) -> None:
    """List masks, flows and clip sources: their package, options and defaults.

    [bold]Examples[/bold]

      mgmae plugins

      mgmae plugins motion dis
    """
    from rich.console import Console
    from rich.table import Table

    from mgmae_cli.errors import PluginError, did_you_mean
    from mgmae_cli.registry import default_registry, option_rows

    registry = default_registry()
    known = {entry.cls.name for entry in registry.entries.values()}
    for name in names or []:
        if name not in known:
            raise PluginError(f"{name}: no such plugin{did_you_mean(name, known)}; known: {', '.join(sorted(known))}")
    console = Console()
    for kind, title, key in (
        ("mask", "Mask strategies (--mask)", "mask.options"),
        ("flow", "Flow estimators (--flow)", "flow.options"),
        ("clip source", "Clip sources (--data)", "data.options"),
    ):
        entries = [entry for entry in registry.of_kind(kind) if not names or entry.cls.name in names]  # type: ignore[arg-type]
        if not entries:
            continue
        table = Table(
            title=title, title_justify="left", caption=f"options: --set {key}.NAME=VALUE", caption_justify="left"
        )
        for column in ("name", "option", "type", "default", "what it does"):
            table.add_column(column)
        for entry in entries:
            about = (entry.cls.__doc__ or "").strip().splitlines()[0:1]
            table.add_row(
                f"[bold]{entry.cls.name}[/bold]", "", "", "", f"{''.join(about)} [dim]({entry.package})[/dim]"
            )
            for option, type_name, default, description in option_rows(entry.cls.Options):
                table.add_row("", option, type_name, default, description)
            table.add_section()
        console.print(table)
    for failure in registry.failures:
        console.print(
            f"[red]failed to load[/red] plugin {failure.plugin!r} of {failure.package}: {failure.reason}",
            highlight=False,
        )
