"""YAML with the rules that people expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgmae_cli.errors import ConfigError
from mgmae_cli.yaml_files import dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5e-4", 1.5e-4),
        ("-2E3", -2000.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("12", 12),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("y", "y"),
        ("2026-01-02", "2026-01-02"),
        ("1e", "1e"),
        ("null", None),
        ("~", None),
        ("[1e-3, on]", [1e-3, "on"]),
    ],
)
def test_numbers_are_numbers_and_words_are_words(text: str, value: object) -> None:
    read = parse_yaml(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        *(
            "1e-4",
            ".5",
            "on",
            "yes",
            "null",
            "~",
            "2026-01-02",
            "1_0",
            "010",
            "",
            "a: b",
            "# no",
            "two\nlines",
            "caf\u00e9",
        ),
        *(1e-4, 1e-5, 1e22, 3, True, None, [1, 2.5, "1e3"], {"a": {"b": []}}),
    ],
)
def test_what_is_dumped_is_read_back_equal_and_of_the_same_type(value: Any) -> None:
    read = parse_yaml(dump_yaml({"key": value}), "here")["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_key_given_twice_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^recipe.yaml: line 4, column 3: key 'lr' is given twice$"):
        parse_yaml("train:\n  lr: 1\n  steps: 3\n  lr: 2\n", "recipe.yaml")


def test_keys_of_other_sections_may_have_the_same_name() -> None:
    assert parse_yaml("a: {name: 1}\nb: {name: 2}", "here") == {"a": {"name": 1}, "b": {"name": 2}}


def test_a_mapping_may_take_over_another() -> None:
    assert parse_yaml("a: &a {p: 1, q: 2}\nb:\n  <<: *a\n  q: 3", "here")["b"] == {"p": 1, "q": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask:\n  ratio: [0.9\nseed: 1\n", "r.yaml: line 3, column 5: expected ',' or ']'"),
        ("a: b: c", "r.yaml: line 1, column 5: mapping values are not allowed here"),
        ("\ta: 1", "r.yaml: line 1, column 1: "),
        ("{[1]: 2}", "r.yaml: line 1, column 2: found unhashable key"),
        ("a: !!python/object:os.system x", "r.yaml: line 1, column 4: could not determine a constructor"),
        ("a: !!int many", "r.yaml: not YAML: "),
        ("a: \x07", "r.yaml: not YAML: unacceptable character #x0007"),
    ],
)
def test_broken_yaml_is_one_line_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "r.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_one_of_comments_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "expected settings as `key: value` lines, found a list"),
        (b"just words\n", "expected settings as `key: value` lines, found a str"),
        (b"a: \xff\xfe\n", "not a recipe: byte 3 is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such recipe file$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path)
    assert str(caught.value) == f"{tmp_path}: can't be read: Is a directory"
