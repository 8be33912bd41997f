"""The registry: collects mask strategies, flow estimators and clip sources from plugins.

Built-in plugins are named as strings and loaded through the same pluggy hooks as installed ones (entry-point group
`mgmae`). Two plugins with one name are an error that names both; one that fails to load is remembered with its reason
and only matters when its name is asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any, Literal

import pluggy
from pydantic import BaseModel, ValidationError

from mgmae_cli import __version__, hookspecs
from mgmae_cli.config import explain
from mgmae_cli.errors import ConfigError, PluginError, did_you_mean
from mgmae_cli.interfaces import ClipSource, FlowEstimator, MaskStrategy, PluginOptions

Kind = Literal["mask", "flow", "clip source"]
Plugin = type[MaskStrategy] | type[FlowEstimator] | type[ClipSource]

BUILTIN = ("mgmae_cli.masking.plugin", "mgmae_cli.motion.plugin", "mgmae_cli.video.plugin")
_HOOKS: tuple[tuple[str, Kind, type], ...] = (
    ("mgmae_register_masks", "mask", MaskStrategy),
    ("mgmae_register_flows", "flow", FlowEstimator),
    ("mgmae_register_clip_sources", "clip source", ClipSource),
)
_SECTION: dict[Kind, str] = {"mask": "mask", "flow": "flow", "clip source": "data"}


@dataclass(frozen=True)
class Entry:
    """One registered class and the package it came from, as "name version"."""

    kind: Kind
    cls: Plugin
    package: str


@dataclass(frozen=True)
class Failure:
    """A plugin that did not load, and why."""

    plugin: str
    package: str
    reason: str


@dataclass
class Registry:
    """All plugins by kind and name."""

    entries: dict[tuple[Kind, str], Entry] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def mask(self, name: str, origin: str = "mask.name") -> type[MaskStrategy]:
        """Return the mask strategy of that name.

        Raises:
            PluginError: no such name; the message offers the nearest one and names plugins that failed to load.
        """
        found: type[MaskStrategy] = self._get("mask", name, origin)
        return found

    def flow(self, name: str, origin: str = "flow.name") -> type[FlowEstimator]:
        """Return the flow estimator of that name; errors as for `mask`."""
        found: type[FlowEstimator] = self._get("flow", name, origin)
        return found

    def source(self, name: str, origin: str = "data.source") -> type[ClipSource]:
        """Return the clip source of that name; errors as for `mask`."""
        found: type[ClipSource] = self._get("clip source", name, origin)
        return found

    def of_kind(self, kind: Kind) -> Iterator[Entry]:
        """Yield the entries of one kind, by name."""
        for key in sorted(self.entries):
            if key[0] == kind:
                yield self.entries[key]

    def names(self, kind: Kind) -> list[str]:
        return [entry.cls.name for entry in self.of_kind(kind)]

    def _get(self, kind: Kind, name: str, origin: str) -> Any:
        entry = self.entries.get((kind, name))
        if entry is not None:
            return entry.cls
        known = self.names(kind)
        message = f"{origin}: unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
        for failure in self.failures:
            message += f"; plugin {failure.plugin!r} of {failure.package} failed to load: {failure.reason}"
        raise PluginError(message)

    def make_options(
        self, kind: Kind, cls: Plugin, options: Mapping[str, Any], origins: Mapping[str, str] | None = None
    ) -> PluginOptions:
        """Validate a plugin's options.

        Raises:
            ConfigError: every problem with its origin; an option that another plugin of the kind has is named as such.
        """
        prefix = f"{_SECTION[kind]}.options."
        origins = origins or {}
        problems = []
        for key in options:
            if key not in cls.Options.model_fields:
                others = [e.cls.name for e in self.of_kind(kind) if key in e.cls.Options.model_fields]
                has = f"; {', '.join(others)} has it" if others else did_you_mean(key, cls.Options.model_fields)
                where = origins.get(prefix + key, "")
                place = f"{where}: " if where else ""
                named = "" if where.endswith(prefix + key) else f"{prefix}{key}: "
                problems.append(f"{place}{named}{kind} {cls.name!r} has no option {key!r}{has}")
        try:
            made = cls.Options.model_validate({k: v for k, v in options.items() if k in cls.Options.model_fields})
        except ValidationError as error:
            problems.extend(explain(error, cls.Options, origins, prefix))
        if problems:
            raise ConfigError("\n".join(problems))
        return made

    def add(self, kind: Kind, cls: Any, package: str) -> None:
        """Register a class after checking that it is one of its kind.

        Raises:
            PluginError: the class is not usable, or its name is taken by another package.
        """
        base = next(base for _, k, base in _HOOKS if k == kind)
        label = getattr(cls, "__qualname__", repr(cls))
        is_one = isinstance(cls, type) and issubclass(cls, base)
        if not is_one:
            raise PluginError(f"{label} is not a subclass of {base.__name__}")
        if not isinstance(getattr(cls, "name", None), str) or not cls.name:
            raise PluginError(f"{label} has no `name`")
        if inspect.isabstract(cls):
            raise PluginError(f"{label} does not implement {', '.join(sorted(cls.__abstractmethods__))}")
        if not issubclass(cls.Options, PluginOptions):
            raise PluginError(f"{label}.Options is not a subclass of PluginOptions")
        taken = self.entries.get((kind, cls.name))
        if taken is not None and taken.cls is not cls:
            raise NameTaken(
                f"{kind} {cls.name!r} is registered by both {taken.package} ({taken.cls.__module__}) and "
                f"{package} ({cls.__module__}); uninstall one of them"
            )
        self.entries[kind, cls.name] = Entry(kind, cls, package)


class NameTaken(PluginError):
    """Two plugins claim one name."""


def build_registry(modules: Sequence[str] = BUILTIN, entry_points: Sequence[EntryPoint] | None = None) -> Registry:
    """Load built-in modules and installed plugins into a new registry.

    Args:
        modules: names of built-in plugin modules.
        entry_points: installed plugins; None finds those of entry-point group `mgmae`.

    Raises:
        NameTaken: two plugins claim one name; the message names both packages.
    """
    registry = Registry()
    manager = pluggy.PluginManager("mgmae")
    manager.add_hookspecs(hookspecs)
    for module in modules:
        _load(registry, manager, module, f"mgmae {__version__}", lambda module=module: importlib.import_module(module))
    for point, package in _installed() if entry_points is None else [(p, _package(p)) for p in entry_points]:
        _load(registry, manager, point.name, package, point.load)
    return registry


def _load(registry: Registry, manager: pluggy.PluginManager, name: str, package: str, load: Any) -> None:
    try:
        plugin = load()
        manager.register(plugin, name=f"{package}:{name}")
        manager.check_pending()
        added: list[tuple[Kind, object]] = []
        for hook, kind, _ in _HOOKS:
            others = [other for other in manager.get_plugins() if other is not plugin]
            for classes in manager.subset_hook_caller(hook, others)():
                added += [(kind, cls) for cls in classes]
        for kind, cls in added:
            registry.add(kind, cls, package)
    except NameTaken:
        raise
    except Exception as error:  # a plugin may fail in any way, and must not take the program with it
        if manager.has_plugin(f"{package}:{name}"):
            manager.unregister(name=f"{package}:{name}")
        reason = " ".join(str(error).split()) or type(error).__name__
        text = reason if isinstance(error, PluginError) else f"{type(error).__name__}: {reason}"
        registry.failures.append(Failure(name, package, text))


def _installed() -> Iterator[tuple[EntryPoint, str]]:
    for dist in distributions():
        for point in dist.entry_points:
            if point.group == "mgmae":
                yield point, _describe(dist)


def _package(point: EntryPoint) -> str:
    return _describe(point.dist) if point.dist else point.value


def _describe(dist: Distribution) -> str:
    return f"{dist.metadata['Name']} {dist.version}"


@lru_cache(maxsize=1)
def default_registry() -> Registry:
    """Return the registry of everything installed; loaded once a process."""
    return build_registry()


def guess_source(registry: Registry, path: Path) -> type[ClipSource]:
    """Return the source that `--data PATH` means.

    Raises:
        ConfigError: nothing at that path, or no source takes it.
    """
    if not path.exists():
        hint = did_you_mean(str(path), registry.names("clip source"))
        raise ConfigError(f"{path}: no such file or folder{hint}")
    for entry in registry.of_kind("clip source"):
        if issubclass(entry.cls, ClipSource) and entry.cls.accepts(path):
            return entry.cls
    raise ConfigError(f"{path}: not a video, a folder of videos, or a list file; name its kind with data.source")


def option_rows(options: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, type, default, description) of each option, for tables."""
    schema = options.model_json_schema()
    for name, info in options.model_fields.items():
        kind = schema["properties"][name]
        choices = kind.get("enum") or [c.get("const", c.get("type")) for c in kind.get("anyOf", [])]
        text = "|".join(str(choice) for choice in choices) if choices else str(kind.get("type", ""))
        default = "required" if info.is_required() else repr(info.default).strip("'")
        yield name, text, default, info.description or ""
