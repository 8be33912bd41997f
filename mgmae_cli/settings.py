"""From layers of settings to a resolved run: the config with nothing left to choose, and the parts it names.

The clip source is found first, since it brings defaults of its own; then everything is validated, plugin options
included, and contradictions between sections are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgmae_cli.config import Layer, RunConfig, build, merge, recipe_layer, set_layer
from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import ClipSource, DataLocation, FlowEstimator, MaskStrategy
from mgmae_cli.masking.masker import Masker
from mgmae_cli.registry import Registry, default_registry, guess_source

# The length of a run when nobody names one; sources may recommend another.
_DEFAULT_LENGTH = {"train.epochs": 100}


@dataclass(frozen=True)
class Settings:
    """A validated run: `config` is complete, and the classes are those it names."""

    config: RunConfig
    mask: type[MaskStrategy]
    flow: type[FlowEstimator]
    source: type[ClipSource]
    registry: Registry

    @property
    def grid(self) -> ClipGrid:
        return grid_of(self.config)

    def make_masker(self) -> Masker:
        """Return the mask strategy and, if it uses flow, its estimator, ready to draw."""
        config, registry = self.config, self.registry
        strategy = self.mask(registry.make_options("mask", self.mask, config.mask.options))
        estimator = None
        if self.mask.uses_flow:
            estimator = self.flow(registry.make_options("flow", self.flow, config.flow.options))
        return Masker(strategy, estimator, self.grid, config.mask.ratio)

    def make_source(self) -> ClipSource:
        """Return the clip source, opened.

        Raises:
            DataError: missing, empty, or not understood.
        """
        data = self.config.data
        options = self.registry.make_options("clip source", self.source, data.options)
        return self.source(options, DataLocation(data.path, data.root))


def grid_of(config: RunConfig) -> ClipGrid:
    """Return the token grid of a config.

    Raises:
        ConfigError: sizes that do not divide.
    """
    data, model = config.data, config.model
    return ClipGrid(data.frames, data.height, data.width, model.tubelet, model.patch)


def resolve(
    recipe: Path | None = None,
    flags: Layer | None = None,
    assignments: Sequence[str] = (),
    registry: Registry | None = None,
) -> Settings:
    """Resolve a run from a recipe file, command-line flags and `--set` assignments.

    Raises:
        ConfigError: unknown keys, wrong values, contradictions; all that can be told at once.
        PluginError: an unknown mask, flow or source.
    """
    layers = [recipe_layer(recipe)] if recipe else []
    layers += [flags] if flags else []
    layers += [set_layer(assignments)] if assignments else []
    return resolve_layers(layers, registry)


def resolve_layers(layers: Sequence[Layer], registry: Registry | None = None) -> Settings:
    """Resolve a run from any stack of layers, later over earlier; errors as for `resolve`."""
    registry = registry or default_registry()
    values, origins = merge(layers)
    source = _find_source(values, origins, registry)
    recommended = Layer(
        f"defaults of source {source.name!r}", {**_DEFAULT_LENGTH, **source.recommended, "data.source": source.name}
    )
    layers = [layer if "data.source" not in layer.values else _with_source(layer, source.name) for layer in layers]
    values, origins = merge([recommended, *layers])

    mask = registry.mask(str(values.get("mask.name", "motion")), origins.get("mask.name", "mask.name"))
    flow = registry.flow(str(values.get("flow.name", "dis")), origins.get("flow.name", "flow.name"))
    config = build(values, origins)
    problems: list[str] = []
    complete: dict[str, dict[str, Any]] = {}
    used = {"mask": ("mask", mask, config.mask.options), "data": ("clip source", source, config.data.options)}
    if mask.uses_flow:
        used["flow"] = ("flow", flow, config.flow.options)
    for section, (kind, cls, options) in used.items():
        try:
            made = registry.make_options(kind, cls, options, origins)  # type: ignore[arg-type]
            complete[section] = made.model_dump(mode="json")
        except ConfigError as error:
            problems.append(str(error))
    if not mask.uses_flow:
        problems += _unused_flow(origins, mask)
    if problems:
        raise ConfigError("\n".join(problems))
    config = _with_options(config, complete)
    _refuse_contradictions(config, mask, flow, source)
    return Settings(config, mask, flow, source, registry)


def _find_source(values: Mapping[str, Any], origins: Mapping[str, str], registry: Registry) -> type[ClipSource]:
    name, path = values.get("data.source", "auto"), values.get("data.path")
    if name != "auto":
        return registry.source(str(name), origins.get("data.source", "data.source"))
    if path is None:
        return registry.source("shapes")
    try:
        return guess_source(registry, Path(str(path)))
    except ConfigError as error:
        raise ConfigError(f"{origins.get('data.path', 'data.path')}: {error}") from None


def _with_source(layer: Layer, name: str) -> Layer:
    """Return the layer with `auto` replaced by what it means, so that it does not look like another choice."""
    if layer.values["data.source"] != "auto":
        return layer
    return Layer(layer.origin, {**layer.values, "data.source": name}, layer.origins)


def _unused_flow(origins: Mapping[str, str], mask: type[MaskStrategy]) -> list[str]:
    """A flow given on the command line to a strategy without flow is a mistake; in a recipe it waits for a sweep."""
    given = [origin for key, origin in origins.items() if key.startswith("flow.") and origin.startswith("--")]
    return [f"{origin}: mask {mask.name!r} uses no flow; drop it, or choose --mask motion" for origin in given]


def _with_options(config: RunConfig, complete: Mapping[str, dict[str, Any]]) -> RunConfig:
    """Return the config with every plugin option written out, defaults included."""
    sections = {
        section: getattr(config, section).model_copy(update={"options": options})
        for section, options in complete.items()
    }
    return config.model_copy(update=sections)


def _refuse_contradictions(
    config: RunConfig, mask: type[MaskStrategy], flow: type[FlowEstimator], source: type[ClipSource]
) -> None:
    data, train = config.data, config.train
    grid_of(config).masked_per_slot(config.mask.ratio)
    if train.batch_size % data.samples_per_video:
        raise ConfigError(
            f"train.batch_size = {train.batch_size}: not a multiple of data.samples_per_video = "
            f"{data.samples_per_video}; a batch holds whole videos"
        )
    if mask.uses_flow and flow.needs_truth:
        if not source.knows_flow:
            raise ConfigError(
                f"flow.name = {flow.name!r}: source {source.name!r} does not know its flow; use dis or raft"
            )
        if data.crop != "none" or data.flip:
            raise ConfigError(
                f"flow.name = {flow.name!r}: exact flow needs uncropped clips; set data.crop to none, flip to 0"
            )
    if data.path is None and source.needs_path:
        raise ConfigError(f"data.path: source {source.name!r} needs a path; give --data PATH")
    if data.path is not None and not source.needs_path:
        raise ConfigError(f"data.path = {data.path}: source {source.name!r} reads no path; drop one of the two")
    grid = grid_of(config)
    if config.model.decoder_mask == "running_cell" and (grid.rows % 2 or grid.cols % 2):
        raise ConfigError(
            f"model.decoder_mask = 'running_cell': needs an even number of patch rows and columns, "
            f"not {grid.rows} x {grid.cols}; use none, or another data.size"
        )
