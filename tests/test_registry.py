"""The registry: what plugins may bring, what is refused and in which words, and who is named when names clash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import Field
from torch import Tensor

from mgmae_cli import __version__
from mgmae_cli.errors import ConfigError, PluginError
from mgmae_cli.hookspecs import hookimpl
from mgmae_cli.interfaces import (
    Clip,
    ClipRequest,
    ClipSource,
    FlowEstimator,
    FlowRequest,
    MaskInputs,
    MaskStrategy,
    PluginOptions,
)
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.registry import BUILTIN, NameTaken, Registry, build_registry, guess_source, option_rows

OWN = f"mgmae {__version__}"


class Mine(MaskStrategy):
    """A mask."""

    name = "mine"

    def sample(self, inputs: MaskInputs) -> Tensor:
        raise NotImplementedError


class Still(FlowEstimator):
    """A flow."""

    name = "still"

    def estimate(self, request: FlowRequest) -> Tensor:
        raise NotImplementedError


class Tape(ClipSource):
    """A clip source that takes .tape files."""

    name = "tape"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.suffix == ".tape"

    def __len__(self) -> int:
        return 0

    def load(self, index: int, request: ClipRequest) -> Clip:
        raise NotImplementedError

    def clip_name(self, index: int) -> str:
        return ""


def with_(base: type, **attributes: Any) -> type:
    """Return a subclass with other attributes."""
    return type(attributes.pop("called", "Other"), (base,), attributes)


@pytest.fixture
def plug() -> Iterator[Callable[..., EntryPoint]]:
    """Return a function that makes a plugin module of hooks and gives the entry point to it."""
    made: list[str] = []

    def make(module: str, **hooks: Any) -> EntryPoint:
        plugin = ModuleType(module)
        for hook, classes in hooks.items():
            setattr(plugin, f"mgmae_register_{hook}", hookimpl(classes if callable(classes) else lambda c=classes: c))
        sys.modules[module] = plugin
        made.append(module)
        return EntryPoint(module.removeprefix("mgmae_"), module, "mgmae")

    yield make
    for module in made:
        del sys.modules[module]


def only(*points: EntryPoint) -> Registry:
    """Return a registry of the built-in masks and these plugins."""
    return build_registry(BUILTIN[:1], points)


def test_built_ins_of_every_kind_come_through_the_hooks() -> None:
    registry = build_registry(entry_points=[])
    assert registry.failures == []
    assert {"random", "tube", "motion"} <= set(registry.names("mask"))
    assert {"dis", "raft", "zero", "truth"} <= set(registry.names("flow"))
    assert "shapes" in registry.names("clip source")
    assert {entry.package for entry in registry.entries.values()} == {OWN}
    assert build_registry((), []).entries == {}, "nothing is registered but by plugins"


def test_a_plugin_may_bring_classes_of_every_kind(plug: Callable[..., EntryPoint]) -> None:
    registry = only(plug("mgmae_all", masks=[Mine], flows=(Still,), clip_sources=[Tape]))
    assert registry.failures == []
    assert registry.mask("mine") is Mine
    assert registry.flow("still") is Still
    assert registry.source("tape") is Tape
    assert registry.entries["mask", "mine"].package == "mgmae_all"


def test_an_installed_plugin_is_found_and_named_by_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plug: Callable[..., EntryPoint]
) -> None:
    plug("mgmae_found", masks=[Mine])
    info = tmp_path / "mgmae_found-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mgmae-found\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[mgmae]\nfound = mgmae_found\nagain = mgmae_found\n\n[other]\nx = nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = build_registry(BUILTIN[:1])
    assert registry.entries["mask", "mine"].package == "mgmae-found 1.2"
    assert not [failure for failure in registry.failures if failure.package == "mgmae-found 1.2"]


def test_two_packages_with_one_name_are_an_error_that_names_both(plug: Callable[..., EntryPoint]) -> None:
    theirs = with_(Mine, called="Theirs", __module__="mgmae_b")
    with pytest.raises(NameTaken) as caught:
        only(plug("mgmae_a", masks=[Mine]), plug("mgmae_b", masks=[theirs]))
    assert str(caught.value) == (
        f"mask 'mine' is registered by both mgmae_a ({Mine.__module__}.Mine) and mgmae_b (mgmae_b.Theirs); "
        "uninstall one of them, or rename it there"
    )


def test_the_order_of_installation_does_not_choose_between_two_packages(plug: Callable[..., EntryPoint]) -> None:
    a, b = plug("mgmae_a", masks=[Mine]), plug("mgmae_b", masks=[with_(Mine)])
    for order in ((a, b), (b, a)):
        with pytest.raises(NameTaken, match=r"mgmae_a.*mgmae_b|mgmae_b.*mgmae_a"):
            only(*order)


def test_a_plugin_cannot_take_the_name_of_a_built_in(plug: Callable[..., EntryPoint]) -> None:
    with pytest.raises(NameTaken) as caught:
        only(plug("mgmae_evil", masks=[with_(Mine, name="tube")]))
    assert f"registered by both {OWN} (mgmae_cli.masking.tube.TubeMask) and mgmae_evil (" in str(caught.value)
    assert str(caught.value).endswith("; uninstall mgmae_evil, or rename it there")


def test_one_name_may_serve_two_kinds_and_one_class_two_entry_points(plug: Callable[..., EntryPoint]) -> None:
    first = plug("mgmae_a", masks=[Mine], flows=[with_(Still, name="mine")])
    again = EntryPoint("again", "mgmae_a", "mgmae")
    registry = only(first, again, plug("mgmae_b", masks=[Mine]))
    assert registry.failures == []
    assert registry.entries["mask", "mine"].package == "mgmae_a", "who came first keeps it"


def explode(error: BaseException) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        ({"masks": [Still]}, "Still is not a subclass of MaskStrategy"),
        ({"flows": [Mine]}, "Mine is not a subclass of FlowEstimator"),
        ({"clip_sources": [3]}, "3 is not a subclass of ClipSource"),
        (
            {"masks": [type("NoName", (MaskStrategy,), {"sample": Mine.sample})]},
            "NoName has no `name`; give it one, as",
        ),
        ({"masks": [with_(Mine, name="")]}, "Other has no `name`"),
        ({"masks": [with_(Mine, name="a/b")]}, "Other.name = 'a/b': may hold letters, digits, - and _ only; choose"),
        (
            {"clip_sources": [with_(Tape, name="auto")]},
            "Other.name = 'auto': is what mgmae calls its own choice; choose",
        ),
        ({"masks": [type("Idle", (MaskStrategy,), {"name": "idle"})]}, "Idle does not implement sample"),
        ({"clip_sources": [type("Idle", (ClipSource,), {"name": "i"})]}, "does not implement __len__, clip_name, load"),
        ({"masks": [with_(Mine, runs_on="gpu")]}, "Other.runs_on = 'gpu'; expected 'worker' or 'device' or 'flow'"),
        ({"flows": [with_(Still, runs_on="flow")]}, "Other.runs_on = 'flow'; expected 'worker' or 'device'"),
        ({"masks": [with_(Mine, Options=dict)]}, "Other.Options is not a subclass of PluginOptions"),
        ({"masks": [with_(Mine, Options=PluginOptions())]}, "Other.Options is not a subclass of PluginOptions"),
        ({"masks": lambda: Mine}, "; expected a list of MaskStrategy classes"),
        ({"masks": lambda: None}, "mgmae_register_masks returned None; expected a list of MaskStrategy classes"),
        ({"masks": explode(ValueError("boom\n  bang"))}, "ValueError: boom bang"),
        ({"masks": explode(SystemExit(3))}, "SystemExit: 3"),
        ({"masks": explode(RuntimeError())}, "RuntimeError"),
        ({"mask": [Mine]}, "PluginValidationError: unknown hook 'mgmae_register_mask'"),
        (
            {"masks": lambda name: [Mine]},
            "PluginValidationError: Plugin 'mgmae_bad:bad' for hook 'mgmae_register_masks'",
        ),
        ({}, "implements no hook; mark one of mgmae_register_masks, mgmae_register_flows, mgmae_register_clip_sources"),
        ({"masks": [Mine, with_(Mine)]}, "are both mask 'mine'; rename one of them"),
    ],
)
def test_an_unusable_plugin_is_recorded_with_its_reason(
    plug: Callable[..., EntryPoint], hooks: dict[str, Any], reason: str
) -> None:
    registry = only(plug("mgmae_bad", **hooks), plug("mgmae_good", masks=[with_(Mine, name="good")]))
    (failure,) = registry.failures
    assert reason in failure.reason
    assert "\n" not in failure.reason
    assert (failure.plugin, failure.package) == ("bad", "mgmae_bad")
    assert registry.names("mask") == ["good", "motion", "random", "tube"]
    assert registry.names("flow") == registry.names("clip source") == []


def test_options_that_no_recipe_can_hold_are_refused(plug: Callable[..., EntryPoint]) -> None:
    class Calls(PluginOptions):
        call: Callable[[], int] = int

    (failure,) = only(plug("mgmae_bad", masks=[with_(Mine, Options=Calls)])).failures
    assert "Other.Options can't be written in a recipe: " in failure.reason


def test_a_plugin_with_one_bad_class_registers_none(plug: Callable[..., EntryPoint]) -> None:
    registry = only(plug("mgmae_half", masks=[Mine], flows=[Mine]))
    assert registry.names("mask") == ["motion", "random", "tube"]
    assert len(registry.failures) == 1


def test_a_plugin_that_cannot_be_imported_matters_only_when_its_name_is_asked_for(tmp_path: Path) -> None:
    registry = only(EntryPoint("absent", "mgmae_absent", "mgmae"), EntryPoint("less", "json:nothing", "mgmae"))
    assert registry.mask("tube") is TubeMask
    reasons = [failure.reason for failure in registry.failures]
    assert reasons == [
        "ModuleNotFoundError: No module named 'mgmae_absent'",
        "AttributeError: module 'json' has no attribute 'nothing'",
    ]
    with pytest.raises(PluginError) as caught:
        registry.mask("absent", "--mask")
    assert str(caught.value) == (
        "--mask: unknown mask 'absent'; known: motion, random, tube; plugin 'absent' of mgmae_absent failed to load: "
        f"{reasons[0]}; plugin 'less' of json:nothing failed to load: {reasons[1]}"
    )


def test_a_built_in_that_fails_is_recorded_too() -> None:
    registry = build_registry((*BUILTIN[:1], "mgmae_cli.nowhere"), [])
    assert [(failure.plugin, failure.package) for failure in registry.failures] == [("mgmae_cli.nowhere", OWN)]


def test_ctrl_c_during_loading_is_not_swallowed(plug: Callable[..., EntryPoint]) -> None:
    with pytest.raises(KeyboardInterrupt):
        only(plug("mgmae_slow", masks=explode(KeyboardInterrupt())))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("mask", "motoin", "mask.name: unknown mask 'motoin' (did you mean 'motion'?); known: motion, random, tube"),
        ("mask", "xyz", "mask.name: unknown mask 'xyz'; known: motion, random, tube"),
        ("flow", "dsi", "flow.name: unknown flow 'dsi' (did you mean 'dis'?)"),
        ("source", "shape", "data.source: unknown clip source 'shape' (did you mean 'shapes'?)"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(kind: str, name: str, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        getattr(build_registry(entry_points=[]), kind)(name)
    assert str(caught.value).startswith(message)


# --- options ------------------------------------------------------------------------------------------------------


def test_an_option_of_another_strategy_is_named_as_such() -> None:
    registry = build_registry(entry_points=[])
    with pytest.raises(ConfigError) as caught:
        registry.make_options("mask", TubeMask, {"warp": "forward"}, {"mask.options.warp": "--warp"})
    assert str(caught.value) == "--warp: mask.options.warp: mask 'tube' has no option 'warp'; motion has it"


def test_several_strategies_with_the_option_are_all_named(plug: Callable[..., EntryPoint]) -> None:
    class WithWarp(PluginOptions):
        warp: bool = True

    registry = only(plug("mgmae_a", masks=[with_(Mine, Options=WithWarp)]))
    with pytest.raises(ConfigError, match="has no option 'warp'; mine, motion have it"):
        registry.make_options("mask", TubeMask, {"warp": True})


def test_a_misspelt_option_is_answered_with_the_nearest_one() -> None:
    registry = build_registry(entry_points=[])
    with pytest.raises(ConfigError, match=r"mask 'motion' has no option 'wrap' \(did you mean 'warp'\?\)"):
        registry.make_options("mask", registry.mask("motion"), {"wrap": "forward"})


def test_all_problems_of_options_are_reported_at_once_with_where_each_was_said() -> None:
    registry = build_registry(entry_points=[])
    origins = {
        "mask.options.warp": "--warp",
        "mask.options.sigma": "r.yaml",
        "mask.options.wide": "--set mask.options.wide",
    }
    with pytest.raises(ConfigError) as caught:
        registry.make_options("mask", registry.mask("motion"), {"warp": "up", "sigma": -1, "wide": 2}, origins)
    wide, warp, sigma = str(caught.value).split("\n")
    assert wide.startswith("--set mask.options.wide: mask 'motion' has no option 'wide'")
    assert warp.startswith("--warp: mask.options.warp: 'up': input should be 'backward' or 'forward'")
    assert sigma.startswith("r.yaml: mask.options.sigma: -1: input should be greater than 0")


def test_options_come_back_validated_with_their_defaults() -> None:
    registry = build_registry(entry_points=[])
    made = registry.make_options("mask", registry.mask("motion"), {"warp": "forward", "sigma": 4})
    assert (made.warp, made.sigma, made.base_frame) == ("forward", 4.0, "middle")  # type: ignore[attr-defined]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Everything(PluginOptions):
    must: int
    flag: bool = Field(True, description="on or off")
    share: float = Field(0.25, gt=0, le=1)
    word: Literal["a", "b"] = "a"
    single: Literal["only"] = "only"
    maybe: float | None = Field(None, ge=2)
    pair: tuple[int, float] = (1, 2.5)
    several: list[str] = Field(default_factory=list)
    table: dict[str, int] = {}
    file: Path | None = Path("x.pt")
    colour: Colour = Colour.RED
    empty: str = ""


def test_option_rows_say_type_default_and_purpose_as_recipes_write_them() -> None:
    assert list(option_rows(Everything)) == [
        ("must", "integer", "required", ""),
        ("flag", "true|false", "true", "on or off"),
        ("share", "number > 0, <= 1", "0.25", ""),
        ("word", "a|b", "a", ""),
        ("single", "only", "only", ""),
        ("maybe", "number >= 2 or null", "null", ""),
        ("pair", "[integer, number]", "[1, 2.5]", ""),
        ("several", "[text, ...]", "[]", ""),
        ("table", "mapping", "{}", ""),
        ("file", "path or null", "x.pt", ""),
        ("colour", "red|blue", "red", ""),
        ("empty", "text", '""', ""),
    ]
    assert list(option_rows(PluginOptions)) == []


# --- what --data PATH means ---------------------------------------------------------------------------------------


def test_a_path_goes_to_the_source_that_takes_it(tmp_path: Path, plug: Callable[..., EntryPoint]) -> None:
    tape = tmp_path / "a.tape"
    tape.touch()
    registry = only(plug("mgmae_tape", clip_sources=[Tape]))
    assert guess_source(registry, tape) is Tape
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError, match=r"a\.txt: not a video, a folder of videos, or a list file; name its kind"):
        guess_source(registry, tmp_path / "a.txt")
    with pytest.raises(ConfigError, match=r"nothing\.tape: no such file or folder"):
        guess_source(registry, tmp_path / "nothing.tape")


def test_a_path_that_two_sources_take_is_an_error_that_names_both(
    tmp_path: Path, plug: Callable[..., EntryPoint]
) -> None:
    tape = tmp_path / "a.tape"
    tape.touch()
    registry = only(
        plug("mgmae_tape", clip_sources=[Tape]), plug("mgmae_reel", clip_sources=[with_(Tape, name="reel")])
    )
    with pytest.raises(ConfigError) as caught:
        guess_source(registry, tape)
    assert str(caught.value) == (
        f"{tape}: sources 'reel' of mgmae_reel and 'tape' of mgmae_tape take it; choose, as in --set data.source=reel"
    )
