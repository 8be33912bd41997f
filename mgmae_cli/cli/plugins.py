"""`mgmae plugins`: what is installed, as a listing for people or as JSON for programs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mgmae_cli.registry import Entry, Registry

_WIDEST = 120  # longer lines of text are hard to read
# kind -> (heading, flag, where options go, key in the JSON, class attributes that its author declares)
_KINDS = {
    "mask": ("Mask strategies", "--mask NAME", "mask.options", "masks", ("runs_on", "uses_flow")),
    "flow": ("Flow estimators", "--flow NAME", "flow.options", "flows", ("runs_on", "needs_truth")),
    "clip source": (
        "Clip sources",
        "--data PATH or NAME",
        "data.options",
        "clip_sources",
        ("needs_path", "knows_flow"),
    ),
}


def plugins(
    names: Annotated[
        list[str] | None, typer.Argument(help="Show only these masks, flows or clip sources.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List masks, flows and clip sources: their package, options and defaults.

    [bold]Examples[/bold]

      mgmae plugins

      mgmae plugins motion dis

      mgmae plugins --json
    """
    from rich.console import Console

    from mgmae_cli.registry import default_registry

    listing = list_plugins(default_registry(), names or [])
    if as_json:
        typer.echo(json.dumps(listing, indent=2))
    else:
        _print(listing, Console(highlight=False, emoji=False))


def list_plugins(registry: Registry, names: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Return what is registered, by kind, and under "failures" what did not load.

    Args:
        names: keep only the masks, flows and clip sources of these names; empty keeps all.

    Raises:
        PluginError: nothing has one of the names; the message offers the nearest and names plugins that failed to load.
    """
    from mgmae_cli.errors import PluginError, did_you_mean

    known = {name for _, name in registry.entries}
    for name in names:
        if name not in known:
            raise PluginError(
                f"{name}: no such mask, flow or clip source{did_you_mean(name, known)}; "
                f"known: {', '.join(sorted(known))}{registry.failed()}"
            )
    listing: dict[str, list[dict[str, Any]]] = {
        key: [_describe(entry, attributes) for entry in registry.of_kind(kind) if not names or entry.cls.name in names]  # type: ignore[arg-type]
        for kind, (_, _, _, key, attributes) in _KINDS.items()
    }
    listing["failures"] = [] if names else [vars(failure) for failure in registry.failures]
    return listing


def _describe(entry: Entry, attributes: Sequence[str]) -> dict[str, Any]:
    from mgmae_cli.registry import option_rows

    columns = ("name", "type", "default", "description")
    return {
        "name": entry.cls.name,
        "package": entry.package,
        "description": inspect.cleandoc(entry.cls.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        **{attribute: getattr(entry.cls, attribute) for attribute in attributes},
        "options": [dict(zip(columns, row)) for row in option_rows(entry.cls.Options)],
    }


def _print(listing: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print a listing: a line or two for each plugin, its options below it. Texts are plugins' own: never markup."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    width = min(console.width, _WIDEST)
    for title, flag, section, key, _ in _KINDS.values():
        if not listing[key]:
            continue
        console.print(Text.assemble((title, "bold underline"), f"  {flag}  --set {section}.OPTION=VALUE\n"))
        for plugin in listing[key]:
            head = Table.grid(padding=(0, 2, 0, 0))
            about = Text.assemble(plugin["description"], "  ", (f"({plugin['package']})", "dim"))
            head.add_row(Text(plugin["name"], "bold cyan", no_wrap=True), about)
            console.print(head, width=width)
            longest = max((len(f"{option['name']} = {option['default']}") for option in plugin["options"]), default=0)
            options = Table.grid(padding=(0, 2, 0, 0))
            options.add_column(min_width=min(longest, width // 2), max_width=width // 2, overflow="fold")
            options.add_column()
            for option in plugin["options"]:
                setting = Text.assemble((option["name"], "green"), f" = {option['default']}")
                options.add_row(setting, Text.assemble(option["description"], " ", (f"({option['type']})", "dim")))
            console.print(Padding(options, (0, 0, 1, 2)), width=width)
    if listing["failures"]:
        console.print(Text("Failed to load", "bold underline red"))
        for failure in listing["failures"]:
            console.print(Text(f"\n{failure['plugin']}  {failure['reason']}  ({failure['package']})"), width=width)
