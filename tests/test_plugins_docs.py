"""plugins/README.md is true: its packages run, every hook and attribute has an entry, its messages are those given."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mgmae_cli import hookspecs, interfaces
from mgmae_cli.cli.app import app
from mgmae_cli.config import Layer
from mgmae_cli.errors import MgmaeError, PluginError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.hookspecs import hookimpl
from mgmae_cli.interfaces import (
    Clip,
    ClipRequest,
    ClipSource,
    DataLocation,
    FlowEstimator,
    FlowRequest,
    MaskStrategy,
    PluginOptions,
    checked_mask,
)
from mgmae_cli.masking.contract import ShiftFlow, check_mask_strategy, mask_inputs
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.registry import BUILTIN, Registry, build_registry, guess_source
from mgmae_cli.settings import resolve
from mgmae_cli.video.dataset import ClipDataset, ClipSpec
from mgmae_cli.yaml_files import parse_yaml

README = (Path(__file__).resolve().parents[1] / "plugins" / "README.md").read_text(encoding="utf-8")
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "mgmae_spec")]


def section(heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    start = re.search(rf"^(#+) {re.escape(heading)}$", README, re.MULTILINE)
    assert start, f"plugins/README.md has no heading {heading!r}"
    end = re.search(rf"^#{{1,{len(start[1])}}} ", README[start.end() :], re.MULTILINE)
    return README[start.end() :][: end.start() if end else None]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- every hook and attribute has an entry ------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_entry_with_an_example(hook: str) -> None:
    (example,) = blocks(section(hook), "python")
    assert f"@hookimpl\ndef {hook}():" in example
    assert f"](#{hook})" in README, "and a link to it at the top"


def test_every_documented_hook_exists() -> None:
    assert set(re.findall(r"^### (mgmae_\w+)", README, re.MULTILINE)) == set(HOOKS)
    assert len(HOOKS) == 3


def own_attributes(cls: type) -> set[str]:
    """Return what a class declares that plugin authors use or write: public names, and special methods to implement."""
    names = {name for name in (*vars(cls), *vars(cls).get("__annotations__", {})) if not name.startswith("_")}
    return names | ({"__init__", "__len__"} & set(vars(cls)) if inspect.isabstract(cls) else set())


@pytest.mark.parametrize(
    "name",
    ["MaskStrategy", "MaskInputs", "FlowEstimator", "FlowRequest", "ClipSource", "ClipRequest", "Clip", "TruthFlow"],
)
def test_every_attribute_is_in_the_table_of_its_class(name: str) -> None:
    table = "\n".join(line.split(" | ")[0] for line in section(name).splitlines() if line.startswith("| `"))
    documented = {entry.partition("(")[0] for entry in re.findall(r"`([^`]+)`", table)}
    expected = own_attributes(getattr(interfaces, name)) - {"options", "location", "stack"}
    if name == "TruthFlow":
        expected -= {"to"}
    assert documented == expected


def test_every_link_inside_the_page_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


# --- the tutorial runs --------------------------------------------------------------------------------------------


@pytest.fixture
def tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the tutorial's files and give its package the metadata that pip would; return its folder."""
    text = section("A mask of your own in five minutes")
    files = re.findall(r"^`mgmae-mask-busy/([\w.]+)`.*?\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["pyproject.toml", "mgmae_mask_busy.py", "test_mask_busy.py"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    project = dict(re.findall(r'^([\w-]+) = "(.+)"$', files[0][1], re.MULTILINE))
    info = tmp_path / "mgmae_mask_busy-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = files[0][1].partition("[project.entry-points.mgmae]\n")[2].replace('"', "")
    (info / "entry_points.txt").write_text(f"[mgmae]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("mgmae_mask_busy", "test_mask_busy"):
        sys.modules.pop(name, None)


def test_the_tutorials_mask_is_found_and_draws_valid_masks(tutorial: Path) -> None:
    registry = build_registry()
    assert registry.failures == []
    assert registry.entries["mask", "busy"].package == "mgmae-mask-busy 0.1.0"
    cls = registry.mask("busy")
    for power in (0, 2, 9):
        for ratio in (0.75, 0.9):
            check_mask_strategy(
                cls(registry.make_options("mask", cls, {"power": power})), ClipGrid(8, 64, 96, 2, 8), ratio
            )


def test_the_tutorials_own_tests_pass(tutorial: Path) -> None:
    tests = [test for name, test in vars(importlib.import_module("test_mask_busy")).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_tutorials_listing_is_what_mgmae_plugins_prints(tutorial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = build_registry()
    monkeypatch.setattr("mgmae_cli.registry.default_registry", lambda: registry)
    result = CliRunner().invoke(app, ["plugins", "busy"], env={"COLUMNS": "100", "TERM": "dumb"})
    (listing,) = blocks(section("A mask of your own in five minutes"), "text")
    assert [line.rstrip() for line in result.output.strip().splitlines()] == listing.strip().splitlines()


def test_the_tutorials_commands_and_recipe_run(
    tutorial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mgmae pretrain --mask theirs` trains: each command as it is written, cut to two steps of a tiny run."""
    from mgmae_cli.engine.pretrain import pretrain

    text = section("A mask of your own in five minutes")
    registry = build_registry()
    (recipe,) = blocks(text, "yaml")
    (tmp_path / "recipe.yaml").write_text(recipe)
    settings = resolve(tmp_path / "recipe.yaml", registry=registry)
    assert settings.config.mask.options == {"power": parse_yaml(recipe, "")["mask"]["options"]["power"]}

    commands = [shlex.split(line) for line in blocks(text, "console")[0].splitlines() if "mgmae pretrain" in line]
    assert len(commands) == 2
    for number, (*start, name_flag, name) in enumerate(command[:4] for command in commands):
        assert (start, name_flag, name) == (["mgmae", "pretrain"], "--mask", "busy")
        given = commands[number][4:]
        assert given[0::2] == ["--set"] * (len(given) // 2)
        small = ["train.steps=2", "train.batch_size=2", "data.workers=0", "data.size=32", "run.pictures=false"]
        place = [f"run.out={tmp_path / f'run{number}'}", "run.device=cpu"]
        chosen = Layer("command line", {"mask.name": name}, {"mask.name": "--mask"})
        settings = resolve(None, chosen, [*given[1::2], *small, *place], registry)
        pretrain(settings)
        assert (tmp_path / f"run{number}" / "config.yaml").read_text().count("name: busy") == 1


# --- the examples below the hooks run -----------------------------------------------------------------------------


@pytest.fixture
def example() -> Iterator[Callable[[str], Registry]]:
    """Return a function that loads the example below a hook as a plugin, next to the built-in ones."""

    def load(hook: str) -> Registry:
        module = ModuleType("mgmae_example")
        exec(blocks(section(hook), "python")[0], vars(module))
        sys.modules["mgmae_example"] = module
        registry = build_registry(entry_points=[EntryPoint("example", "mgmae_example", "mgmae")])
        assert registry.failures == []
        return registry

    yield load
    del sys.modules["mgmae_example"]


def test_the_example_of_a_mask_keeps_the_contract(example: Callable[[str], Registry]) -> None:
    cls = example("mgmae_register_masks").mask("centre")
    strategy, grid = cls(cls.Options()), ClipGrid(8, 96, 128, 2, 8)
    check_mask_strategy(strategy, grid, 0.9)
    maps = strategy.visibility(mask_inputs(grid, 0.9, 2))
    assert maps is not None
    assert maps.shape == (2, grid.frames, grid.height, grid.width)
    visible = ~strategy.sample(mask_inputs(grid, 0.9, 300)).view(300, grid.slots, grid.rows, grid.cols)
    share = visible.float().mean((0, 1))
    assert share[5:7, 7:9].mean() > 0.5 > 0.01 > share[0, 0]


def test_the_example_of_a_flow_finds_shifts_and_carries_motion_masks(example: Callable[[str], Registry]) -> None:
    registry = example("mgmae_register_flows")
    cls = registry.flow("pan")
    flow = cls(registry.make_options("flow", cls, {}))
    still = torch.randint(256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = torch.stack([still, still.roll((-5, 7), (2, 3)), still.roll((3, -9), (2, 3))], dim=2)
    pairs = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1, 0], [2, 1]])
    shifts = flow.estimate(FlowRequest(clip, *pairs))[..., 0, 0]
    assert shifts.tolist() == [[[7, -5], [-7, 5]], [[-9, 3], [16, -8]]]
    inputs = mask_inputs(ClipGrid(8, 64, 64, 2, 8), 0.9, 2, estimator=flow)
    assert checked_mask(MotionMask(MotionMask.Options()), inputs).shape == (2, 256)


def test_the_example_of_a_clip_source_reads_its_file(tmp_path: Path, example: Callable[[str], Registry]) -> None:
    registry = example("mgmae_register_clip_sources")
    videos = np.random.default_rng(0).integers(0, 255, (3, 10, 24, 32, 3), dtype=np.uint8)
    path = tmp_path / "videos.npy"
    np.save(path, videos)
    cls = guess_source(registry, path)
    assert cls.name == "npy"
    source = cls(registry.make_options("clip source", cls, {"first": 1}), DataLocation(path))
    assert len(source) == 2
    sample = ClipDataset(source, ClipSpec(4, 3, 24, 32, lambda frames, _: frames), seed=0)[(0, 1)]
    assert not isinstance(sample, MgmaeError)
    assert sample.name == f"{path}[2]"
    assert torch.equal(sample.clips[0].permute(1, 2, 3, 0), torch.from_numpy(videos[2, [0, 3, 6, 9]]))
    with pytest.raises(MgmaeError, match=re.escape(f"data.path = {path}: data.options.first = 3 leaves no video")):
        cls(registry.make_options("clip source", cls, {"first": 3}), DataLocation(path))
    settings = resolve(None, Layer("", {"data.path": str(path)}), registry=registry)
    assert (settings.config.data.source, settings.config.data.stride) == ("npy", 1)


# --- messages -----------------------------------------------------------------------------------------------------


class MineMask(MaskStrategy):
    name = "mine"

    class Options(PluginOptions):
        power: float = 1.0

    def sample(self, inputs: Any) -> Tensor:
        return self.returned(inputs)

    def returned(self, inputs: Any) -> Any:
        return ~torch.ones(inputs.batch, inputs.grid.tokens, dtype=torch.bool)


class MineFlow(FlowEstimator):
    name = "mine"

    def estimate(self, request: FlowRequest) -> Tensor:
        raise NotImplementedError


class MineSource(ClipSource):
    name = "mine"
    Options = MineMask.Options

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.suffix == ".mine"

    def __len__(self) -> int:
        return 9

    def load(self, index: int, request: ClipRequest) -> Clip:
        return Clip(torch.zeros(8, 64, 64, 3, dtype=torch.uint8), self.clip_name(index))

    def clip_name(self, index: int) -> str:
        return f"clip {index}"


def of(base: type, called: str = "", **attributes: Any) -> Any:
    """Return a subclass that could have been written in module mgmae_mine."""
    module = attributes.pop("module", "mgmae_mine")
    return type(called or base.__name__, (base,), {"__module__": module, **attributes})


class Named(Distribution):
    """A distribution that exists by name only."""

    def __init__(self, name: str, version: str) -> None:
        self.text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def registry_of(monkeypatch: pytest.MonkeyPatch, modules: Sequence[str] = BUILTIN[:1], **plugins: Any) -> Registry:
    """Return a registry of built-ins and of plugins, each given as its module's name and its hooks."""
    points = []
    for number, (module, hooks) in enumerate(plugins.items(), start=1):
        plugin = ModuleType(module)
        for hook, returned in hooks.items():
            setattr(plugin, f"mgmae_register_{hook}", hookimpl(lambda returned=returned: returned))
        monkeypatch.setitem(sys.modules, module, plugin)
        point = EntryPoint(module.removeprefix("mgmae_"), module, "mgmae")
        vars(point).update(dist=Named(module.replace("_", "-"), f"{number}.0"))
        points.append(point)
    return build_registry(modules, points)


def message_of(act: Callable[[], object]) -> str:
    with pytest.raises(MgmaeError) as caught:
        act()
    return str(caught.value)


def documented_messages(intro: str) -> list[str]:
    """Return the lines of the first text block after a line of the README that starts with `intro`."""
    text = section("What is checked, and what you are told")
    return blocks(text[text.index(f"\n{intro}") :], "text")[0].splitlines()


def test_reasons_of_plugins_that_do_not_load_are_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**hooks: Any) -> str:
        (failure,) = registry_of(monkeypatch, mgmae_mine=hooks).failures
        return failure.reason

    (absent,) = build_registry([], [EntryPoint("mine", "mgmae_mine", "mgmae")]).failures
    assert documented_messages("When plugins are loaded") == [
        absent.reason,
        reason(),
        reason(mask=[]),
        reason(masks=None),
        reason(masks=[MineFlow]),
        reason(masks=[of(MaskStrategy, "MineMask", sample=None)]),
        reason(masks=[of(MineMask, name="my mask")]),
        reason(masks=[of(MaskStrategy, "MineMask", name="mine")]),
        reason(masks=[of(MineMask, runs_on="gpu")]),
        reason(flows=[of(MineFlow, runs_on="gpu")]),
        reason(masks=[of(MineMask, Options=dict)]),
        reason(masks=[of(MineMask), of(MineMask, "OtherMask")]),
    ]


def test_the_message_about_two_packages_with_one_name_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    def clash() -> None:
        one, two = (of(MineMask, module=module) for module in ("mgmae_one", "mgmae_two"))
        registry_of(monkeypatch, mgmae_one={"masks": [one]}, mgmae_two={"masks": [two]})

    assert documented_messages("When a command needs plugins, and two") == [message_of(clash)]


def test_messages_about_names_options_and_settings_are_as_documented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip.mine").touch()
    registry = registry_of(monkeypatch, BUILTIN, mgmae_one={"masks": [MineMask], "clip_sources": [MineSource]})
    two = registry_of(
        monkeypatch,
        mgmae_one={"clip_sources": [MineSource]},
        mgmae_two={"clip_sources": [of(MineSource, name="other")]},
    )

    def refused(**flags: str) -> str:
        keys = {"mask": "mask.name", "warp": "mask.options.warp", "flow": "flow.name", "data": "data.source"}
        values = {"mask.name": "mine", **{keys[flag]: value for flag, value in flags.items()}}
        origins = {keys[flag]: f"--{flag}" for flag in flags if flag != "data"}
        return message_of(lambda: resolve(None, Layer("", values, origins), registry=registry))

    mine = Layer("", {"mask.name": "mine"})
    expected = documented_messages("When names and options are looked up")
    assert expected[:3] == [
        message_of(lambda: registry.mask("mime", "--mask")),
        refused(warp="forward"),
        message_of(lambda: resolve(None, mine, ["mask.options.pwr=2"], registry)),
    ]
    assert expected[3] == refused(flow="zero")
    assert expected[4] in refused(data="mine")
    assert expected[5:] == [message_of(lambda: guess_source(two, Path("clip.mine")))]


def test_messages_about_what_plugins_return_are_as_documented() -> None:
    grid = ClipGrid(8, 64, 64, 2, 8)

    def masked(returned: Callable[[Any], Any]) -> str:
        strategy = of(MineMask, returned=lambda self, inputs: returned(inputs))(MineMask.Options())
        return message_of(lambda: checked_mask(strategy, mask_inputs(grid, 0.9, 2)))

    def uneven(inputs: Any) -> Tensor:
        return torch.arange(inputs.grid.tokens) < torch.tensor([[26], [25]])

    def flowed(shape: Sequence[int]) -> str:
        flow = of(MineFlow, estimate=lambda self, request: torch.zeros(*shape))(None)
        frames = torch.arange(7).expand(2, -1)
        return message_of(lambda: mask_inputs(grid, 0.9, 2, estimator=flow).flow(frames, frames + 1))

    source = MineSource(MineSource.Options(), DataLocation())
    sample = ClipDataset(source, ClipSpec(8, 1, 64, 64, lambda frames, _: frames), seed=0)[(0, 3)]
    assert isinstance(sample, PluginError)
    assert documented_messages("While running") == [
        masked(lambda inputs: torch.zeros(2, 256)),
        masked(lambda inputs: [True]),
        masked(uneven),
        masked(lambda inputs: inputs.flow(torch.zeros(2, 1), torch.ones(2, 1))),
        flowed((2, 7, 2, 64)),
        flowed((2, 7, 2, 128, 128)),
        str(sample),
    ]


def test_asking_for_the_right_flow_passes_the_checks() -> None:
    """Guard the test above against an estimator that is always refused."""
    frames = torch.zeros(1, 1, dtype=torch.long)
    inputs = mask_inputs(ClipGrid(2, 16, 16, 2, 8), 0.5, estimator=ShiftFlow(1, 2))
    assert inputs.flow(frames, frames + 1)[0, 0, :, 0, 0].tolist() == [1, 2]
