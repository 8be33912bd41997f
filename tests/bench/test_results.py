"""Tables as Markdown, and the report as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mgmae_cli.bench.measure import Figure
from mgmae_cli.bench.results import FORMAT, Report, Row, Table, as_markdown, describe, environment, in_words
from mgmae_cli.errors import RunError
from mgmae_cli.registry import build_registry

TABLE = Table(
    "step",
    "tiny clips",
    [
        Row("ours", {"a clip": Figure.of([1.0, 2.0, 3.0], "s"), "x hf": Figure.of([1.4], "x")}),
        Row("hf", {"a clip": Figure.of([2.0], "s")}),
    ],
    ["nothing was measured"],
)


def test_a_table_is_markdown_with_every_row_column_and_note() -> None:
    assert as_markdown(TABLE).splitlines() == [
        "### step: tiny clips",
        "",
        "| step |             a clip |  x hf |",
        "|------|-------------------:|------:|",
        "| ours | 2.00 s (1.50-2.50) | 1.40x |",
        "| hf   |             2.00 s |       |",
        "",
        "- nothing was measured",
    ]


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (Figure.of([0.012345], "s"), "0.0123 s"),
        (Figure.of([1234.5], "GFLOP/s"), "1234 GFLOP/s"),
        (Figure.of([99.9], "%"), "99.9 %"),
        (Figure.of([3], ""), "3.00"),
        (Figure.of([1.0, 1.0, 1.0], "x"), "1.00x (1.00-1.00)"),
        (Figure.of([0.0], "px"), "0.00 px"),
    ],
)
def test_figures_have_three_digits_their_unit_and_their_spread(figure: Figure, words: str) -> None:
    assert in_words(figure) == words


def test_the_json_has_environment_options_tables_and_all_samples(tmp_path: Path) -> None:
    report = Report(environment(build_registry(entry_points=[]), torch.device("cpu")), {"repeats": 3}, [TABLE])
    report.save(tmp_path / "bench.json")
    tree = json.loads((tmp_path / "bench.json").read_text())
    assert set(tree) == {"format", "environment", "options", "tables"}
    assert tree["format"] == FORMAT
    facts = tree["environment"]
    assert facts["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu"
    assert facts["cpu"]
    for key in ("mgmae", "started", "python", "platform", "cpu_count", "git", "load_average", "command"):
        assert key in facts
    assert tree["tables"][0]["rows"][0]["figures"]["a clip"] == {
        "unit": "s", "median": 2.0, "low": 1.5, "high": 2.5, "samples": [1.0, 2.0, 3.0],
    }  # fmt: skip
    assert tree["tables"][0]["notes"] == ["nothing was measured"]


def test_the_environment_in_words_names_machine_commit_and_versions() -> None:
    facts = environment(build_registry(entry_points=[]), torch.device("cpu"))
    facts |= {"git": {"commit": "0123456789abcdef", "modified": True}, "load_average": 1.25, "cpu": "Some CPU"}
    words = describe(facts)
    assert "commit 0123456789 (modified)" in words
    assert f"torch {facts['packages']['torch']}" in words
    assert "Some CPU" in words
    assert "load average 1.2 before" in words
    assert "no commit" in describe({**facts, "git": None, "load_average": None})


def test_a_report_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no/bench\.json: can.t be written"):
        Report({}, {}).save(tmp_path / "no" / "bench.json")
