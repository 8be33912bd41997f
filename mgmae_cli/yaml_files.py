"""YAML as its readers expect it: `1e-4` is a number, `on` is a word, and a key given twice is an error.

PyYAML follows YAML 1.1, where `1e-4` is a string, `on` is True and `2026-01-02` a date; this loader takes the rules of
YAML 1.2: a number, a word and a word. What `dump_yaml` writes, both kinds of reader read alike.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mgmae_cli.errors import ConfigError

_BOOL, _FLOAT, _DATE, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "timestamp", "merge"))
_FLOAT_RULE = (
    _FLOAT,
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats, booleans and dates, refusing duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # `<<: *other`
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag not in (_BOOL, _FLOAT, _DATE)]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(*_FLOAT_RULE)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes words which the loader would take for numbers."""


_Dumper.add_implicit_resolver(*_FLOAT_RULE)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML text.

    Raises:
        ConfigError: naming `origin`, the line and what is wrong with it.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{origin}: {place}{error.problem or error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: `!!int word`
        raise ConfigError(f"{origin}: not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: missing, unreadable, or something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a recipe: byte {error.start} is not UTF-8 text") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings as `key: value` lines, found a {type(tree).__name__}")
    return tree


def dump_yaml(tree: Any) -> str:
    """Return plain data as YAML text that `parse_yaml` reads back as equal data."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=110)
    return text
