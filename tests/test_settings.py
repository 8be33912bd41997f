"""From layers to a resolved run, with a small registry of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mgmae_cli.config import Layer, dump
from mgmae_cli.errors import ConfigError, DataError, PluginError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, MaskInputs, MaskStrategy, PluginOptions
from mgmae_cli.registry import Registry, build_registry
from mgmae_cli.settings import Settings, resolve


class _Files(ClipSource):
    """A source of files: folders."""

    name = "files"

    class Options(PluginOptions):
        depth: int = 1

    def __len__(self) -> int:
        return len(list(self.location.path.iterdir())) if self.location.path else 0

    def load(self, index: int, request: ClipRequest) -> Clip:
        return Clip(torch.zeros(request.frames, 3, 8, 8, dtype=torch.uint8), self.clip_name(index))

    def clip_name(self, index: int) -> str:
        return f"file {index}"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_dir()


class _Lists(_Files):
    """Another source of files: lists."""

    name = "lists"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.suffix == ".csv"


class _Made(_Files):
    """A source that makes its clips and has defaults of its own."""

    name = "shapes"
    needs_path = False
    knows_flow = True
    recommended: ClassVar[Mapping[str, Any]] = {
        "data.frames": 4,
        "data.size": 16,
        "data.crop": "none",
        "model.patch": 8,
        "train.steps": 70,
    }

    class Options(PluginOptions):
        speed: float = 1.0

    def __len__(self) -> int:
        return 10

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False


class _Generous(MaskStrategy):
    """A strategy with a budget of its own: everything."""

    name = "generous"

    def sample(self, inputs: MaskInputs) -> Tensor:
        return torch.zeros(inputs.batch, inputs.grid.tokens, dtype=torch.bool)

    def visible_tokens(self, grid: ClipGrid, ratio: float) -> int:
        return grid.tokens


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = build_registry(("mgmae_cli.masking.plugin", "mgmae_cli.motion.plugin"), [])
    for cls in (_Files, _Lists, _Made):
        registry.add("clip source", cls, "tests 1.0")
    registry.add("mask", _Generous, "tests 1.0")
    return registry


def _flags(**flags: Any) -> Layer:
    """Return a layer of flags, as in _flags(mask=...)."""
    keys = {"mask": "mask.name", "warp": "mask.options.warp", "flow": "flow.name", "data": "data.path"}
    keys |= {"source": "data.source", "steps": "train.steps", "epochs": "train.epochs", "ratio": "mask.ratio"}
    return Layer("command line", {keys[k]: v for k, v in flags.items()}, {keys[k]: f"--{k}" for k in flags})


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def _complaints(registry: Registry, *arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(*arguments, registry=registry)
    return str(caught.value).splitlines()


def test_nothing_said_means_motion_masks_on_shapes(registry: Registry) -> None:
    settings = resolve(registry=registry)
    assert (settings.mask.name, settings.flow.name, settings.source.name) == ("motion", "dis", "shapes")
    assert settings.config.data.source == "shapes"


def test_a_resolved_config_is_a_recipe_that_resolves_to_an_equal_config(registry: Registry, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, (flags, assignments) in enumerate(
        [
            (_flags(), []),
            (_flags(mask="tube", data=str(videos)), ["train.base_lr=1e-3", "data.size=[64, 96]"]),
            (_flags(mask="motion", warp="forward", flow="truth"), ["data.options.speed=2", "train.epochs=0.5"]),
            (_flags(mask="random"), ["model.decoder_mask=running_cell", "train.betas=[0.8, 0.9]", "mask.ratio=0.5"]),
        ]
    ):
        first = resolve(None, flags, assignments, registry)
        path = tmp_path / f"{number}.yaml"
        path.write_text(dump(first.config))
        again = resolve(path, registry=registry)
        assert again.config == first.config
        assert (again.mask, again.flow, again.source) == (first.mask, first.flow, first.source)


def test_every_option_is_written_out_with_its_default(registry: Registry) -> None:
    config = resolve(registry=registry).config
    assert config.data.options == {"speed": 1.0}
    assert config.mask.options["warp"] == "backward"
    assert set(config.mask.options) == set(registry.mask("motion").Options.model_fields)
    assert set(config.flow.options) == set(registry.flow("dis").Options.model_fields)


def test_what_a_source_recommends_lies_under_recipe_and_flags(registry: Registry, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "data: {frames: 8}")
    config = resolve(recipe, None, ["data.size=32"], registry).config
    assert (config.data.frames, config.data.size, config.data.crop, config.train.steps) == (8, 32, "none", 70)
    config = resolve(recipe, _flags(epochs=3.0), registry=registry).config
    assert (config.train.steps, config.train.epochs) == (None, 3.0)


def test_recommendations_of_other_sources_do_not_apply(registry: Registry, tmp_path: Path) -> None:
    config = resolve(None, _flags(data=str(tmp_path)), registry=registry).config
    assert (config.data.source, config.data.frames, config.data.size) == ("files", 16, 224)
    assert (config.train.steps, config.train.epochs) == (None, 100)


def test_a_motion_flag_with_tube_is_an_error_that_names_both(registry: Registry) -> None:
    assert _complaints(registry, None, _flags(mask="tube", warp="forward")) == [
        "--warp: mask.options.warp: mask 'tube' has no option 'warp'; motion has it"
    ]


def test_a_motion_option_of_a_recipe_is_dropped_with_its_strategy(registry: Registry, tmp_path: Path) -> None:
    for text in ("mask: {options: {warp: forward}}", "mask: {name: motion, options: {warp: forward}}"):
        assert resolve(_recipe(tmp_path, text), _flags(mask="tube"), registry=registry).config.mask.options == {}


def test_a_flow_flag_with_tube_is_an_error_that_names_both(registry: Registry) -> None:
    complaint = ["--flow: mask 'tube' uses no flow; drop it, or choose --mask motion"]
    assert _complaints(registry, None, _flags(mask="tube", flow="raft")) == complaint
    (line,) = _complaints(registry, None, _flags(mask="tube"), ["flow.options.scale=0.5"])
    assert line.startswith("--set flow.options.scale: mask 'tube' uses no flow")


def test_a_flow_of_a_recipe_waits_for_a_strategy_that_uses_it(registry: Registry, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "flow: {name: zero}")
    assert resolve(recipe, _flags(mask="tube"), registry=registry).config.flow.name == "zero"


def test_truth_flow_is_refused_where_the_source_does_not_know_it(registry: Registry, tmp_path: Path) -> None:
    lines = _complaints(registry, None, _flags(flow="truth", data=str(tmp_path)))
    assert lines == [
        "--flow: flow.name = 'truth': source 'files' does not know its flow; use dis or raft",
        "--flow: flow.name = 'truth': exact flow needs uncropped clips; set data.crop to none, data.flip to 0",
    ]
    assert resolve(None, _flags(flow="truth"), registry=registry).flow.name == "truth"
    (line,) = _complaints(registry, None, _flags(flow="truth"), ["data.flip=0.5"])
    assert "exact flow needs uncropped clips" in line


def test_an_unknown_name_gets_the_nearest_one(registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"^--mask: unknown mask 'moton' \(did you mean 'motion'\?\); known: "):
        resolve(None, _flags(mask="moton"), registry=registry)
    with pytest.raises(PluginError, match=r"^--flow: unknown flow 'diss' \(did you mean 'dis'\?\); known: "):
        resolve(None, _flags(flow="diss"), registry=registry)
    with pytest.raises(PluginError, match=r"^--set data.source: unknown clip source 'shape' \(did you mean 'shapes'"):
        resolve(None, None, ["data.source=shape"], registry)


def test_settings_and_options_are_complained_about_together(registry: Registry) -> None:
    lines = _complaints(registry, None, _flags(warp="sideways", ratio=2.0), ["flow.options.wrong=1", "sed=1"])
    assert [line.partition(": ")[0] for line in sorted(lines)] == [
        "--ratio",
        "--set flow.options.wrong",
        "--set sed",
        "--warp",
    ]


def test_a_path_that_is_not_there_is_named_with_its_flag(registry: Registry, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert _complaints(registry, None, _flags(data=missing)) == [f"--data: {missing}: no such file or folder"]


def test_a_path_takes_back_a_source_that_makes_its_clips(registry: Registry, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "data: {source: shapes, options: {speed: 3}}")
    settings = resolve(recipe, _flags(data=str(tmp_path)), registry=registry)
    assert settings.config.data.source == "files"
    assert settings.config.data.options == {"depth": 1}


def test_a_source_that_makes_its_clips_takes_back_a_path_even_a_missing_one(registry: Registry, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        recipe = _recipe(tmp_path, f"data: {{path: {path}, root: /, options: {{depth: 3}}}}")
        data = resolve(recipe, _flags(source="shapes"), registry=registry).config.data
        assert (data.source, data.path, data.root, data.options) == ("shapes", None, None, {"speed": 1.0})


def test_another_path_keeps_the_source_and_its_options_if_it_reads_it(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    recipe = _recipe(tmp_path, f"data: {{source: files, path: {tmp_path}, options: {{depth: 3}}}}")
    data = resolve(recipe, _flags(data=str(tmp_path.parent)), registry=registry).config.data
    assert (data.source, data.options) == ("files", {"depth": 3})
    data = resolve(recipe, _flags(data=str(tmp_path / "a.csv")), registry=registry).config.data
    assert (data.source, data.options) == ("lists", {"depth": 1})
    (tmp_path / "a.unknown").touch()  # nobody else takes it: the recipe's source knows best
    data = resolve(recipe, _flags(data=str(tmp_path / "a.unknown")), registry=registry).config.data
    assert (data.source, data.options) == ("files", {"depth": 3})


def test_path_and_source_that_do_not_go_together_on_one_layer_are_refused(registry: Registry, tmp_path: Path) -> None:
    assert _complaints(registry, None, _flags(source="files")) == [
        "data.path: source 'files' needs a path; give --data PATH"
    ]
    (line,) = _complaints(registry, None, _flags(source="shapes", data=str(tmp_path)))
    assert line == f"--data: data.path = {tmp_path}: source 'shapes' reads no files; drop one of the two"
    (line,) = _complaints(registry, None, None, [f"data.root={tmp_path}"])
    assert line == f"--set data.root = {tmp_path}: source 'shapes' reads no files; drop one of the two"


@pytest.mark.parametrize(
    ("assignments", "complaint"),
    [
        (["data.size=20"], "--set data.size: height 20 is not a multiple of model.patch = 8; use 16 or 24"),
        (["data.frames=5"], "--set data.frames: frames 5 is not a multiple of model.tubelet = 2; use 4 or 6"),
        (
            ["mask.ratio=0.2"],
            "--set mask.ratio = 0.2: leaves no masked patch of 4 per slot (2 x 2); use a ratio from 0.2500 to 0.7500",
        ),
        (
            ["train.batch_size=6", "data.samples_per_video=4"],
            "--set train.batch_size = 6: not a multiple of data.samples_per_video = 4; a batch holds whole videos",
        ),
        (
            ["model.decoder_mask=running_cell", "data.size=[16, 24]"],
            "--set model.decoder_mask = 'running_cell': needs an even number of patch rows and columns, not 2 x 3; "
            "use none, or another data.size",
        ),
        (
            ["train.steps=null", "train.epochs=null"],
            "--set train.epochs: neither train.epochs nor train.steps is given; give one",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_fix(
    registry: Registry, assignments: list[str], complaint: str
) -> None:
    assert _complaints(registry, None, None, assignments) == [complaint]


def test_a_strategy_whose_own_budget_leaves_nothing_is_refused(registry: Registry) -> None:
    assert _complaints(registry, None, _flags(mask="generous"), ["mask.ratio=0.75"]) == [
        "--set mask.ratio = 0.75: mask 'generous' then shows 8 of 8 tokens; use another ratio"
    ]


def test_an_empty_source_is_refused_when_it_is_opened(registry: Registry, tmp_path: Path) -> None:
    settings = resolve(None, _flags(data=str(tmp_path)), registry=registry)
    with pytest.raises(DataError, match=r"source 'files' finds no videos there$"):
        settings.make_source()


def test_parts_are_made_as_the_settings_say(registry: Registry) -> None:
    def made(mask: str) -> tuple[Settings, Any]:
        settings = resolve(None, _flags(mask=mask), ["mask.ratio=0.5"], registry)
        return settings, settings.make_masker()

    settings, masker = made("motion")
    assert (masker.strategy.name, masker.estimator.name, masker.visible_tokens) == ("motion", "dis", 4)
    assert masker.grid == settings.grid
    assert len(settings.make_source()) == 10
    assert made("tube")[1].estimator is None
