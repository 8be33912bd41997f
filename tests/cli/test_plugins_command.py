"""`mgmae plugins`: all that is registered, readable at any width, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from pydantic import Field
from torch import Tensor
from typer.testing import CliRunner

from mgmae_cli import __version__
from mgmae_cli.cli.app import app
from mgmae_cli.cli.plugins import list_plugins
from mgmae_cli.errors import PluginError
from mgmae_cli.interfaces import MaskInputs, MaskStrategy, PluginOptions
from mgmae_cli.registry import Registry, build_registry, option_rows


class Odd(MaskStrategy):
    """Hides [bold]odd[/bold] patches :smile: of a clip, in one sentence that is much too long for one line of text,
    and ends here.

    More about it.
    """

    name = "odd"

    class Options(PluginOptions):
        size: list[int] = Field([1, 2], description="[height, width] of what is hidden")
        a_rather_long_name_of_an_option: float = Field(0.123456789, ge=0, le=1)

    def sample(self, inputs: MaskInputs) -> Tensor:
        raise NotImplementedError


def registry_with_odd() -> Registry:
    registry = build_registry(entry_points=[EntryPoint("gone", "mgmae_gone", "mgmae")])
    registry.add("mask", Odd, "odd-masks 2.0")
    return registry


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs `mgmae plugins` over the built-ins, `odd`, and a plugin that fails to load."""
    registry = registry_with_odd()
    monkeypatch.setattr("mgmae_cli.registry.default_registry", lambda: registry)

    def invoke(*arguments: str, columns: int = 80) -> str:
        result = CliRunner().invoke(app, ["plugins", *arguments], env={"COLUMNS": str(columns), "TERM": "dumb"})
        if result.exception:
            raise result.exception
        return result.output

    return invoke


def squeezed(text: str) -> str:
    """Return the text with all white space as single spaces, so that line breaks do not matter."""
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_the_listing_fits_its_width_and_holds_every_option_default_and_type(
    run: Callable[..., str], columns: int
) -> None:
    output = run(columns=columns)
    assert max(map(len, output.splitlines())) <= min(columns, 120)
    if columns < 80:
        return
    text = squeezed(output)
    for entry in registry_with_odd().entries.values():
        assert entry.cls.name in text
        for option, type_name, default, description in option_rows(entry.cls.Options):
            wide = entry.cls is Odd and columns == 80  # there, a default may be on the line below its option
            assert (f"{option} = " in text and default in text) if wide else f"{option} = {default} " in text
            assert f"{type_name})" in text
            assert set(description.split()) <= set(text.split())


def test_a_plugin_has_its_sentence_and_package_on_the_lines_of_its_name_and_options_below(
    run: Callable[..., str],
) -> None:
    lines = [line.rstrip() for line in run("motion", columns=100).splitlines()]
    assert lines[:4] == [
        "Mask strategies  --mask NAME  --set mask.options.OPTION=VALUE",
        "",
        f"motion  Visible patches that follow the optical flow.  (mgmae {__version__})",
        "  warp = backward       backward: look each new frame's map up in its neighbour; forward: splat the",
    ]


def test_what_plugins_write_is_shown_as_it_is(run: Callable[..., str]) -> None:
    text = squeezed(run("odd"))
    assert "odd Hides [bold]odd[/bold] patches :smile: of a clip" in text
    assert "and ends here. (odd-masks 2.0)" in text
    assert "size = [1, 2] [height, width] of what is hidden ([integer, ...])" in text
    assert "More about it" not in text


def test_plugins_that_failed_to_load_are_listed_with_their_reason(run: Callable[..., str]) -> None:
    text = squeezed(run())
    assert text.endswith("Failed to load gone ModuleNotFoundError: No module named 'mgmae_gone' (mgmae_gone)")


def test_names_choose_what_is_shown(run: Callable[..., str]) -> None:
    output = run("dis", "tube")
    assert "\ndis " in output
    assert "\ntube " in output
    assert "raft" not in output
    assert "Clip sources" not in output
    assert "Failed to load" not in output


def test_an_unknown_name_is_an_error_with_the_nearest_one_and_the_plugins_that_failed(run: Callable[..., str]) -> None:
    with pytest.raises(PluginError) as caught:
        run("motoin")
    message = str(caught.value)
    assert message.startswith("motoin: no such mask, flow or clip source (did you mean 'motion'?); known: ")
    assert message.endswith(
        "plugin 'gone' of mgmae_gone failed to load: ModuleNotFoundError: No module named 'mgmae_gone'"
    )


def test_json_holds_the_same_for_programs(run: Callable[..., str]) -> None:
    listing: dict[str, Any] = json.loads(run("--json"))
    assert listing == list_plugins(registry_with_odd())
    assert set(listing) == {"masks", "flows", "clip_sources", "failures"}
    motion = next(mask for mask in listing["masks"] if mask["name"] == "motion")
    assert (motion["package"], motion["runs_on"], motion["uses_flow"]) == (f"mgmae {__version__}", "flow", True)
    assert motion["options"][0]["name"] == "warp"
    assert motion["options"][0]["default"] == "backward"
    assert next(source for source in listing["clip_sources"] if source["name"] == "shapes")["needs_path"] is False
    assert listing["failures"] == [
        {"plugin": "gone", "package": "mgmae_gone", "reason": "ModuleNotFoundError: No module named 'mgmae_gone'"}
    ]
    assert [mask["name"] for mask in json.loads(run("odd", "--json"))["masks"]] == ["odd"]
