"""From layers of settings to what a downstream command needs: a complete config, clip sources, and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from rich.console import Console
from rich.progress import track

from mgmae_cli.config import SPEED_OPTIONS, Config, Layer, ReadConfig, build, merge, nest
from mgmae_cli.downstream.config import ReadViews, ValConfig
from mgmae_cli.downstream.views import ViewSpec
from mgmae_cli.errors import ConfigError, DataError
from mgmae_cli.explain import with_origin
from mgmae_cli.interfaces import ClipSource, DataLocation
from mgmae_cli.registry import Registry, default_registry, guess_source
from mgmae_cli.settings import open_source, settle_sources

# `shapes` is for trying things out: a part of it, in minutes on a CPU, and no augmentation that it has no need of.
_SHAPES = {
    "data.options.clips": 2000,
    "val.options.clips": 500,
    "train.epochs": 10,
    "train.batch_size": 32,
    "train.base_lr": 4e-3,
    "augment.randaugment": None,
    "augment.erase": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "model.drop_path": 0.0,
}


@dataclass(frozen=True)
class Resolved(Generic[Config]):
    """A validated config, the sources it names, and where each key was said.

    Args:
        config: complete; the options of its source written out.
        source: class of its clip source.
        val: class of the clip source to test on, and its options; None where the config has no `val`.
    """

    config: Config
    source: type[ClipSource]
    val: type[ClipSource] | None
    origins: Mapping[str, str]
    registry: Registry

    def problem(self, text: str) -> ConfigError:
        """Return an error that starts with a key as one that says where the key was set."""
        return ConfigError(with_origin(text, self.origins))


def checkpoint_of(layers: Sequence[Layer], command: str) -> Path:
    """Return the checkpoint that the layers name, for a command.

    Raises:
        ConfigError: none does.
    """
    values, _ = merge(layers)
    if values.get("checkpoint") is None:
        raise ConfigError(f"checkpoint: none given; name a checkpoint or a run folder, as in mgmae {command} runs/NAME")
    return Path(str(values["checkpoint"]))


def resolve_config(
    model: type[Config],
    layers: Sequence[Layer],
    lower: Sequence[Layer] = (),
    trained: Sequence[Layer] = (),
    registry: Registry | None = None,
) -> Resolved[Config]:
    """Validate layers into a config and find its clip sources.

    Args:
        lower: layers under all others.
        trained: layers under those given: what the checkpoint was trained on. They name no source.

    Raises:
        ConfigError: every problem that can be told at once.
        PluginError: an unknown source.
    """
    registry = registry or default_registry()
    settled, name, origin = settle_sources(layers, registry)
    source = registry.source(name, origin)
    advice = {key: value for key, value in source.recommended.items() if key.startswith("data.")}
    if name == "shapes" and "val" in model.model_fields:
        advice |= _SHAPES
    advice = {key: value for key, value in advice.items() if _known(model, key)}
    base = Layer("defaults", {"data.source": name})
    values, origins = merge([base, *lower, Layer(f"defaults of source {name!r}", advice), *trained, *settled])
    tree, _ = nest(values, origins)
    problems: list[str] = []
    try:
        config = build(values, origins, model)
    except ConfigError as error:
        problems.append(str(error))
    try:
        options = registry.make_options("clip source", source, tree["data"].get("options") or {}, origins)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    data = config.data.model_copy(update={"options": options.model_dump(mode="json")})  # type: ignore[attr-defined]
    config = config.model_copy(update={"data": data})
    resolved = Resolved(config, source, None, origins, registry)
    _refuse_lost_paths(resolved, data)
    if not isinstance(asked := getattr(config, "val", None), ValConfig):
        return resolved
    val, cls = _settle_val(resolved, asked, data)
    return Resolved(config.model_copy(update={"val": val}), source, cls, origins, registry)


def _known(model: type[Config], key: str) -> bool:
    """Return whether a config has a key."""
    section, name = key.split(".")[:2]
    field = model.model_fields.get(section)
    inner: Any = None if field is None else field.annotation
    return inner is not None and name in inner.model_fields


def _refuse_lost_paths(resolved: Resolved[Any], data: ReadConfig) -> None:
    if resolved.source.needs_path and data.path is None:
        raise resolved.problem(f"data.path: source {resolved.source.name!r} needs a path; give --data PATH")
    for key, value in (("data.path", data.path), ("data.root", data.root)):
        if value is not None and not resolved.source.needs_path:
            raise resolved.problem(f"{key} = {value}: source {resolved.source.name!r} reads no files; drop one")


def _settle_val(resolved: Resolved[Any], val: ValConfig, data: ReadConfig) -> tuple[ValConfig, type[ClipSource]]:
    """Return the `val` section with nothing left to choose, and its source.

    Without a path it is the source of `data`, with its options and the split `val`, unless others are given.

    Raises:
        ConfigError: nothing at the path, options that the source lacks, or the same videos as in training.
    """
    registry, origins = resolved.registry, resolved.origins
    cls = resolved.source
    if val.source != "auto":
        cls = registry.source(val.source, origins.get("val.source", "val.source"))
    elif val.path is not None:
        try:
            cls = guess_source(registry, val.path)
        except ConfigError as error:
            raise resolved.problem(f"val.path = {val.path}: {str(error).removeprefix(f'{val.path}: ')}") from None
    same = cls is resolved.source and val.path in (None, data.path)
    if same and cls.needs_path and data.options.get("split") is None:
        raise resolved.problem(
            f"data.path = {data.path}: which of its videos are for training, and which to test on? Give --val PATH, or "
            "name the split to train on: --set data.options.split=train"
        )
    inherited = dict(data.options) if cls is resolved.source else {}
    if same and "split" in cls.Options.model_fields:
        inherited["split"] = "val"
    elif not same:
        inherited.pop("split", None)
    names = {f"data.options.{key[len('val.options.') :]}": o for key, o in origins.items() if "val.options." in key}
    try:
        options = registry.make_options("clip source", cls, {**inherited, **val.options}, names)
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.options.", "val.options.")) from None
    path = val.path or (data.path if cls.needs_path else None)
    settled = ValConfig(
        source=cls.name,
        path=path,
        root=val.root or (data.root if cls.needs_path else None),
        options=options.model_dump(mode="json"),
    )
    if same and _telling(settled.options) == _telling(data.options):
        raise ConfigError(
            "val: the same videos as in training; give --val PATH, or other splits by --set data.options.split=train "
            "and --set val.options.split=val"
        )
    return settled, cls


def _telling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that tell which videos and clips a source gives."""
    return {name: value for name, value in options.items() if name not in SPEED_OPTIONS}


def open_train(resolved: Resolved[Any]) -> ClipSource:
    """Return the clip source of `data`, opened; errors as for `open_source`."""
    return open_source(resolved.registry, resolved.source, resolved.config.data)


def open_val(resolved: Resolved[Any]) -> ClipSource:
    """Return the clip source of `val`, opened.

    Raises:
        DataError: missing, empty, or not understood.
    """
    assert resolved.val is not None
    val: ValConfig = resolved.config.val
    options = resolved.registry.make_options("clip source", resolved.val, val.options)
    try:
        source = resolved.val(options, DataLocation(val.path, val.root))
    except DataError as error:
        raise DataError(str(error).replace("data.options.", "val.options.").replace("data.path", "val.path")) from None
    if len(source) == 0:
        raise DataError(f"val.path = {val.path}: source {source.name!r} finds no videos there")
    return source


def view_spec(data: ReadConfig, views: ReadViews) -> ViewSpec:
    """Return how videos are read for testing."""
    return ViewSpec(
        frames=data.frames,
        stride=data.stride,
        height=data.height,
        width=data.width,
        sampling=data.sampling,
        min_frames=data.min_frames,
        clips=views.clips,
        crops=views.crops,
    )


def watcher(console: Console, verb: str) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """Return what shows the progress of a loop on a terminal, and nothing elsewhere."""

    def watch(items: Iterable[Any], total: int) -> Iterable[Any]:
        if not console.is_terminal:
            return items
        return track(items, description=verb, total=total, console=console, transient=True)

    return watch
