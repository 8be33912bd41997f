"""From layers of settings to a resolved run: the config with nothing left to choose, and the parts it names.

The clip source is found first, since it brings defaults of its own; then everything is validated, plugin options
included, and contradictions between sections are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgmae_cli.config import (
    FlowConfig,
    Layer,
    MaskConfig,
    ReadConfig,
    RunConfig,
    build,
    merge,
    nest,
    recipe_layer,
    set_layer,
)
from mgmae_cli.errors import ConfigError, DataError
from mgmae_cli.explain import with_origin
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import ClipSource, DataLocation, FlowEstimator, MaskStrategy, PluginOptions
from mgmae_cli.masking.masker import Masker
from mgmae_cli.registry import Kind, Plugin, Registry, default_registry, guess_source

# The lowest layer: what a change of name is a change from, and the length of a run when nobody names one.
_DEFAULTS = Layer(
    "defaults",
    {"mask.name": MaskConfig().name, "flow.name": FlowConfig().name, "data.source": "shapes", "train.epochs": 100},
)


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
        return open_source(self.registry, self.source, self.config.data)


def open_source(registry: Registry, cls: type[ClipSource], data: ReadConfig) -> ClipSource:
    """Return the clip source that a config's `data` section describes, opened.

    Raises:
        DataError: missing, empty, or not understood.
    """
    options = registry.make_options("clip source", cls, data.options)
    source = cls(options, DataLocation(data.path, data.root))
    if len(source) == 0:
        raise DataError(f"data.path = {data.path}: source {source.name!r} finds no videos there")
    return source


def grid_of(config: RunConfig) -> ClipGrid:
    """Return the token grid of a config.

    Raises:
        ConfigError: sizes that do not divide.
    """
    data, model = config.data, config.model
    return ClipGrid(data.frames, data.height, data.width, model.tubelet, model.patch)


def given_layers(recipe: Path | None, flags: Layer | None, assignments: Sequence[str]) -> list[Layer]:
    """Return the layers that a user gave, the lowest first."""
    layers = [recipe_layer(recipe)] if recipe else []
    layers += [flags] if flags else []
    return layers + ([set_layer(assignments)] if assignments else [])


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
    return resolve_layers(given_layers(recipe, flags, assignments), registry)


def resolve_layers(layers: Sequence[Layer], registry: Registry | None = None) -> Settings:
    """Resolve a run from any stack of layers, later over earlier; errors as for `resolve`."""
    registry = registry or default_registry()
    layers, source_name, source_origin = settle_sources(layers, registry)
    source = registry.source(source_name, source_origin)
    recommended = Layer(f"defaults of source {source.name!r}", source.recommended)
    values, origins = merge([_DEFAULTS, recommended, *layers])

    mask = registry.mask(str(values["mask.name"]), origins["mask.name"])
    flow = registry.flow(str(values["flow.name"]), origins["flow.name"])
    problems: list[str] = []
    try:
        config = build(values, origins, RunConfig)
    except ConfigError as error:
        problems.append(str(error))
    used: dict[str, tuple[Kind, Plugin]] = {"mask": ("mask", mask), "data": ("clip source", source)}
    if mask.uses_flow:
        used["flow"] = ("flow", flow)
    else:
        problems += _unused_flow(origins, mask)
    tree, _ = nest(values, origins)
    options: dict[str, PluginOptions] = {}
    for section, (kind, cls) in used.items():
        given = tree[section].get("options") or {}
        try:
            options[section] = registry.make_options(kind, cls, given if isinstance(given, dict) else {}, origins)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    config = _with_options(config, options)
    problems = list(_contradictions(config, mask(options["mask"]), flow, source))
    if problems:
        problems = [with_origin(problem, origins) for problem in problems]
        raise ConfigError("\n".join(problems))
    return Settings(config, mask, flow, source, registry)


def settle_sources(layers: Sequence[Layer], registry: Registry) -> tuple[list[Layer], str, str]:
    """Settle which clip source each layer means, since `data.source` and `data.path` are one choice.

    A layer that names a source which makes its clips takes back the path of lower layers; one that names a path takes
    back a source that would not read it.

    Returns:
        The layers, with `data.source` in each that changes it; the source's name in the end; and where it was said.

    Raises:
        ConfigError: nothing at the path, or no source takes it.
    """
    settled: list[Layer] = []
    chosen, path, origin = "auto", None, "data.source"
    for layer in layers:
        values, origins = dict(layer.values), dict(layer.origins or {})
        if "data.path" in values:
            path, origin = values["data.path"], layer.origin_of("data.path")
            if not _reads(registry, chosen, path):
                chosen = "auto"
        if "data.source" in values:
            chosen, origin = str(values["data.source"]), layer.origin_of("data.source")
            if "data.path" not in layer.values and path is not None and _makes_clips(registry, chosen):
                path = values["data.path"] = values["data.root"] = None
        if "data.path" in values or "data.source" in values:
            values["data.source"] = _named(registry, chosen, path)
            origins["data.source"] = origin
        settled.append(Layer(layer.origin, values, origins))
    if chosen != "auto":
        return settled, chosen, origin
    if path is None:
        return settled, "shapes", origin
    try:
        return settled, guess_source(registry, Path(str(path))).name, origin
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _named(registry: Registry, chosen: str, path: object) -> str:
    """Return what `auto` means, as far as that can be told; a higher layer may mend what can't."""
    if chosen != "auto":
        return chosen
    try:
        return "shapes" if path is None else guess_source(registry, Path(str(path))).name
    except ConfigError:
        return chosen


def _makes_clips(registry: Registry, name: str) -> bool:
    return name in registry.names("clip source") and not registry.source(name).needs_path


def _reads(registry: Registry, name: str, path: object) -> bool:
    """Return whether a source chosen earlier goes on with another path: not if only other sources take that."""
    if path is None or name not in registry.names("clip source"):
        return True
    return registry.source(name).needs_path and _named(registry, "auto", path) in ("auto", name)


def _unused_flow(origins: Mapping[str, str], mask: type[MaskStrategy]) -> list[str]:
    """A flow given on the command line to a strategy without flow is a mistake; in a recipe it waits for a sweep."""
    given = [origin for key, origin in origins.items() if key.startswith("flow.") and origin.startswith("--")]
    return [f"{origin}: mask {mask.name!r} uses no flow; drop it, or choose --mask motion" for origin in given]


def _with_options(config: RunConfig, options: Mapping[str, PluginOptions]) -> RunConfig:
    """Return the config with every plugin option written out, defaults included."""
    sections = {
        section: getattr(config, section).model_copy(update={"options": made.model_dump(mode="json")})
        for section, made in options.items()
    }
    return config.model_copy(update=sections)


def _contradictions(
    config: RunConfig, strategy: MaskStrategy, flow: type[FlowEstimator], source: type[ClipSource]
) -> Iterator[str]:
    """Yield what is wrong between settings that are right by themselves."""
    data, train = config.data, config.train
    try:
        grid = grid_of(config)
        grid.masked_per_slot(config.mask.ratio)
        visible = strategy.visible_tokens(grid, config.mask.ratio)
        if not 0 < visible < grid.tokens:
            yield (
                f"mask.ratio = {config.mask.ratio}: mask {strategy.name!r} then shows {visible} of {grid.tokens} "
                "tokens; use another ratio"
            )
        if config.model.decoder_mask == "running_cell" and (grid.rows % 2 or grid.cols % 2):
            yield (
                f"model.decoder_mask = 'running_cell': needs an even number of patch rows and columns, "
                f"not {grid.rows} x {grid.cols}; use none, or another data.size"
            )
    except ConfigError as error:
        yield str(error)
    if config.model.allow_partial and config.model.init is None:
        yield "model.allow_partial: there are no weights to take a part of; give --init CHECKPOINT, or drop it"
    if train.steps is None and train.epochs is None:
        yield "train.epochs: neither train.epochs nor train.steps is given; give one"
    if train.batch_size % data.samples_per_video:
        yield (
            f"train.batch_size = {train.batch_size}: not a multiple of data.samples_per_video = "
            f"{data.samples_per_video}; a batch holds whole videos"
        )
    if strategy.uses_flow and flow.needs_truth:
        if not source.knows_flow:
            yield f"flow.name = {flow.name!r}: source {source.name!r} does not know its flow; use dis or raft"
        if data.crop != "none" or data.flip:
            yield f"flow.name = {flow.name!r}: exact flow needs uncropped clips; set data.crop to none, data.flip to 0"
    if source.needs_path and data.path is None:
        yield f"data.path: source {source.name!r} needs a path; give --data PATH"
    if not source.needs_path:
        for key, value in (("data.path", data.path), ("data.root", data.root)):
            if value is not None:
                yield f"{key} = {value}: source {source.name!r} reads no files; drop one of the two"
