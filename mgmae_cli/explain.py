"""Problems of settings in words: where it was said, the dotted key, the value, and the fix; one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError

from mgmae_cli.errors import did_you_mean


def explain(
    error: ValidationError, model: type[BaseModel], origins: Mapping[str, str], prefix: str = ""
) -> Iterator[str]:
    """Yield one line a problem: where it was said, the dotted key, the value, and the fix.

    Args:
        prefix: dotted path of `model` inside the config, as in "mask.options.".
    """
    known = list(_known_keys(model, prefix))
    by_key: dict[str, list[Any]] = {}  # a value that may be of two types has a problem with each
    for problem in error.errors():
        key = (prefix + _setting(model, problem["loc"])).removesuffix(".")  # what concerns the whole has no loc
        by_key.setdefault(key, []).append(problem)
    for key, problems in by_key.items():
        if problems[0]["type"] == "extra_forbidden":
            yield f"{place(origins, key)}unknown key{_nearest_key(key, known)}"
            continue
        value = problems[0]["input"]
        if problems[0]["type"] in ("model_type", "dict_type"):
            yield f"{place(origins, key)}is a section, not a value ({value!r}); use {key}.NAME"
            continue
        messages = dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in problems)
        message = ", or ".join(f"{text[0].lower()}{text[1:]}" for text in messages)
        said = "" if isinstance(value, dict | BaseModel) else f"{value!r}: "
        yield f"{place(origins, key, message)}{said}{message}"


def place(origins: Mapping[str, str], key: str, message: str = "") -> str:
    """Return "ORIGIN: KEY: ", without the key where the origin ends in it."""
    origin = origin_of(origins, key, message)
    return f"{origin}: " if origin.endswith(key) else f"{origin}: {key}: " if origin else f"{key}: "


def origin_of(origins: Mapping[str, str], key: str, message: str = "") -> str:
    """Return where a key was said; for a section, where the first of its keys was that `message` mentions, or any."""
    above = [".".join(key.split(".")[:depth]) for depth in range(key.count(".") + 1, 0, -1)]
    for name in above:
        if name in origins:
            return origins[name]
    below = [name for name in origins if name.startswith(f"{key}.")]
    mentioned = [name for name in below if name.removeprefix(f"{key}.") in message.split()]
    return next((origins[name] for name in [*mentioned, *below]), "")


def with_origin(problem: str, origins: Mapping[str, str]) -> str:
    """Return a problem that starts with a key, with where that was said in front, unless it was a default."""
    key = re.match(r"[\w.]*", problem)[0]  # type: ignore[index]
    origin = origins.get(key, "defaults")
    if origin.startswith("defaults"):
        return problem
    return origin + problem.removeprefix(key) if origin.endswith(key) else f"{origin}: {problem}"


def _setting(model: type[BaseModel], path: Sequence[int | str]) -> str:
    """Return the dotted key of a setting, without pydantic's branches and positions inside its value."""
    fields = model.model_fields
    for depth, part in enumerate(path, start=1):
        inner = fields[part].annotation if isinstance(part, str) and part in fields else None
        if not is_section(inner):
            return ".".join(str(name) for name in path[:depth])
        fields = inner.model_fields
    return ".".join(str(name) for name in path)


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """Offer a known key with the same last word, or else the most similar one."""
    section, _, last = key.rpartition(".")
    same = [name for name in known if name.rpartition(".")[2] == last]
    beside = [name for name in known if name.startswith(f"{section}.")]
    return f" (did you mean {same[0]!r}?)" if same else did_you_mean(key, beside or known)


def is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        if is_section(info.annotation):
            yield from _known_keys(info.annotation, f"{prefix}{name}.")
