"""The registry: collects mask strategies, flow estimators and clip sources from plugins.

Built-in plugins are named as strings and loaded through the same pluggy hooks as installed ones (entry-point group
`mgmae`). Two packages that claim one name are an error that names both; a plugin that fails to load is remembered with
its reason, registers nothing, and only matters when its name is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pluggy
from pydantic import BaseModel, PydanticUserError, ValidationError
from pydantic_core import to_jsonable_python

from mgmae_cli import __version__, hookspecs
from mgmae_cli.errors import ConfigError, PluginError, did_you_mean
from mgmae_cli.explain import explain
from mgmae_cli.interfaces import ClipSource, FlowEstimator, MaskStrategy, PluginOptions

Kind = Literal["mask", "flow", "clip source"]
Plugin = type[MaskStrategy] | type[FlowEstimator] | type[ClipSource]

BUILTIN = ("mgmae_cli.masking.plugin", "mgmae_cli.motion.plugin", "mgmae_cli.video.plugin")
_OWN = f"mgmae {__version__}"
_HOOKS: tuple[tuple[str, Kind, type], ...] = (
    ("mgmae_register_masks", "mask", MaskStrategy),
    ("mgmae_register_flows", "flow", FlowEstimator),
    ("mgmae_register_clip_sources", "clip source", ClipSource),
)
_SECTION: dict[Kind, str] = {"mask": "mask", "flow": "flow", "clip source": "data"}
_RUNS_ON: dict[Kind, tuple[str, ...]] = {"mask": ("worker", "device", "flow"), "flow": ("worker", "device")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # names become parts of folder names and of command lines


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

    def failed(self) -> str:
        """Return what to add to the message about an unknown name: the plugins that failed to load, and why."""
        return "".join(
            f"; plugin {failure.plugin!r} of {failure.package} failed to load: {failure.reason}"
            for failure in self.failures
        )

    def _get(self, kind: Kind, name: str, origin: str) -> Any:
        entry = self.entries.get((kind, name))
        if entry is not None:
            return entry.cls
        known = self.names(kind)
        raise PluginError(
            f"{origin}: unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}{self.failed()}"
        )

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
                verb = "has" if len(others) == 1 else "have"
                has = f"; {', '.join(others)} {verb} it" if others else did_you_mean(key, cls.Options.model_fields)
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

    def add(self, kind: Kind, cls: Plugin, package: str) -> None:
        """Register a class that `check_class` has passed.

        Raises:
            NameTaken: another package has registered its name.
            PluginError: so has the same package, for another class.
        """
        taken = self.entries.get((kind, cls.name))
        if taken is None:
            self.entries[kind, cls.name] = Entry(kind, cls, package)
        elif taken.cls is not cls and taken.package == package:
            raise PluginError(f"{_path(taken.cls)} and {_path(cls)} are both {kind} {cls.name!r}; rename one of them")
        elif taken.cls is not cls:
            mend = f"uninstall {package}" if taken.package == _OWN else "uninstall one of them"
            raise NameTaken(
                f"{kind} {cls.name!r} is registered by both {taken.package} ({_path(taken.cls)}) and "
                f"{package} ({_path(cls)}); {mend}, or rename it there"
            )


class NameTaken(PluginError):
    """Two packages claim one name."""


def check_class(kind: Kind, cls: Any) -> None:
    """Check what a hook returned before it is registered.

    Raises:
        PluginError: not a class of its kind, abstract, or with a `name`, `runs_on` or `Options` that can't be used.
    """
    base = next(base for _, k, base in _HOOKS if k == kind)
    label = getattr(cls, "__qualname__", repr(cls))
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(f"{label} is not a subclass of {base.__name__}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f'{label} has no `name`; give it one, as in name = "mine"')
    if not _NAME.fullmatch(name) or (kind == "clip source" and name == "auto"):
        why = "is what mgmae calls its own choice" if name == "auto" else "may hold letters, digits, - and _ only"
        raise PluginError(f"{label}.name = {name!r}: {why}; choose another name")
    if inspect.isabstract(cls):
        raise PluginError(f"{label} does not implement {', '.join(sorted(getattr(cls, '__abstractmethods__', [])))}")
    places, place = _RUNS_ON.get(kind), getattr(cls, "runs_on", None)
    if places and place not in places:
        raise PluginError(f"{label}.runs_on = {place!r}; expected {' or '.join(map(repr, places))}")
    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and issubclass(options, PluginOptions)):
        raise PluginError(f"{label}.Options is not a subclass of PluginOptions")
    try:
        list(option_rows(options))
    except PydanticUserError as error:
        raise PluginError(f"{label}.Options can't be written in a recipe: {error.message}") from None


def build_registry(modules: Sequence[str] = BUILTIN, entry_points: Sequence[EntryPoint] | None = None) -> Registry:
    """Load built-in modules and installed plugins into a new registry.

    Args:
        modules: names of built-in plugin modules.
        entry_points: those of plugins; None finds those that are installed, of entry-point group `mgmae`.

    Raises:
        NameTaken: two packages claim one name; the message names both.
    """
    registry = Registry()
    manager = pluggy.PluginManager("mgmae")
    manager.add_hookspecs(hookspecs)
    for module in modules:
        _load(registry, manager, module, _OWN, partial(importlib.import_module, module))
    for point in metadata.entry_points(group="mgmae") if entry_points is None else entry_points:
        package = f"{point.dist.metadata['Name']} {point.dist.version}" if point.dist else point.value
        _load(registry, manager, point.name, package, point.load)
    return registry


def _load(
    registry: Registry, manager: pluggy.PluginManager, name: str, package: str, load: Callable[[], object]
) -> None:
    """Load one plugin and register all of its classes, or none and a Failure."""
    plugin = None
    try:
        plugin = load()
        if manager.is_registered(plugin):  # a second entry point to the same module adds nothing
            return
        manager.register(plugin, name=f"{package}:{name}")
        manager.check_pending()
        offered = list(_offered(manager, plugin))
        for kind, cls in offered:
            check_class(kind, cls)
        trial = Registry(dict(registry.entries))
        for kind, cls in offered:
            trial.add(kind, cls, package)
        registry.entries = trial.entries
    except NameTaken:
        raise
    except (Exception, SystemExit) as error:  # a plugin may fail in any way, and must not take the program with it
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        reason = " ".join(str(error).split())
        if not isinstance(error, PluginError):
            reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        registry.failures.append(Failure(name, package, reason))


def _offered(manager: pluggy.PluginManager, plugin: object) -> Iterator[tuple[Kind, Any]]:
    """Call a plugin's hooks and yield what they return.

    Raises:
        PluginError: it implements no hook, or a hook returns something other than a list.
    """
    if not manager.get_hookcallers(plugin):
        hooks = ", ".join(hook for hook, _, _ in _HOOKS)
        raise PluginError(f"implements no hook; mark one of {hooks} with @mgmae_cli.hookspecs.hookimpl")
    for hook, kind, base in _HOOKS:
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            classes = implementation.function()
            if not isinstance(classes, list | tuple):
                raise PluginError(f"{hook} returned {classes!r}; expected a list of {base.__name__} classes")
            yield from ((kind, cls) for cls in classes)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


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
    sources = [e for e in registry.of_kind("clip source") if issubclass(e.cls, ClipSource) and e.cls.accepts(path)]
    if not sources:
        raise ConfigError(f"{path}: not a video, a folder of videos, or a list file; name its kind with data.source")
    if len(sources) > 1:
        takers = " and ".join(f"{entry.cls.name!r} of {entry.package}" for entry in sources)
        raise ConfigError(f"{path}: sources {takers} take it; choose, as in --set data.source={sources[0].cls.name}")
    found: type[ClipSource] = sources[0].cls  # type: ignore[assignment]
    return found


def option_rows(options: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, type, default, description) of each option, for tables; values as `--set` and recipes write them."""
    schema = options.model_json_schema(by_alias=False)
    for name, info in options.model_fields.items():
        default = "required"
        if not info.is_required():
            value = to_jsonable_python(info.get_default(call_default_factory=True), fallback=str)
            default = value if isinstance(value, str) and value else json.dumps(value)
        yield name, _in_words(schema["properties"][name], schema.get("$defs", {})), default, info.description or ""


def _in_words(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Put the JSON schema of an option in words: 'first|middle', 'number > 0, <= 8', '[number, number]'."""
    if "$ref" in schema:
        return _in_words(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        return " or ".join(_in_words(part, known) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return "|".join(str(choice) for choice in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        parts = [_in_words(part, known) for part in schema.get("prefixItems") or [schema.get("items", {})]]
        return f"[{', '.join(parts)}{'' if 'prefixItems' in schema else ', ...'}]"
    text = {"boolean": "true|false", "string": str(schema.get("format", "text")), "object": "mapping"}.get(kind, kind)
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([text, ", ".join(bounds)]).strip()
