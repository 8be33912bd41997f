"""`mgmae bench` as users call it: names that are refused, what is written, and whole runs of the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mgmae_cli.bench import run
from mgmae_cli.bench.measure import Figure
from mgmae_cli.bench.options import Bench, BenchOptions, parse_precisions
from mgmae_cli.bench.results import Row, Table
from mgmae_cli.bench.train import run_train
from mgmae_cli.cli.app import app
from mgmae_cli.errors import ConfigError

SMALL = ["--model", "tiny", "--frames", "4", "--size", "64", "--batch-size", "2", "--mask-ratio", "0.75"]


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(done.exception, ConfigError), done.output
    return str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fow"], "part 'fow': unknown (did you mean 'flow'?); known: masks, flow, data, step, train"),
        (["step", "--against", "timm"], "--against 'timm': unknown; known: hf"),
        (["step", "--model", "smal"], "--model 'smal': unknown (did you mean 'small'?)"),
        (["step", "--precision", "fp16"], "--precision 'fp16': unknown"),
        (["step", "flow", "step"], "part 'step': named twice"),
        (["step", "--model", "tiny", "--model", "tiny"], "--model 'tiny': named twice"),
        (["step", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["step", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["train", "--steps", "3"], "--steps 3: must be at least 4"),
        (["step", "--size", "100"], "is not a multiple of model.patch"),
        (["step", "--mask-ratio", "1.0"], "mask.ratio = 1.0"),
        (["data", "--video", "none.mp4"], "none.mp4: no such file"),
        (["flow", "--weights", "none.pth"], "none.pth: no such file"),
        (["masks", "--device", "tpu"], "run.device = 'tpu'"),
    ],
)
def test_what_is_not_known_is_refused_before_anything_runs(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("part", "option", "users"),
    [
        ("step", ["--steps", "12"], "train"),
        ("flow", ["--against", "hf"], "step"),
        ("data", ["--model", "base"], "masks, step, train"),
        ("data", ["--precision", "bf16"], "masks, step, train"),
        ("masks", ["--compile"], "step, train"),
        ("train", ["--checkpointing"], "step"),
        ("masks", ["--profile", "traces"], "step"),
    ],
)
def test_an_option_that_no_chosen_part_looks_at_is_refused(part: str, option: list[str], users: str) -> None:
    message = refused(part, *option)
    assert message.startswith(option[0])
    assert f"only {users} look" in message


def test_hf_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgmae_cli.bench.options.find_spec", lambda name: None)
    assert "pip install transformers" in refused("step", "--against", "hf")


def test_precisions_may_be_one_both_or_not_named() -> None:
    assert parse_precisions([]) == parse_precisions(["both"]) == parse_precisions(["bf16", "fp32"]) == ("fp32", "bf16")
    assert parse_precisions(["bf16"]) == ("bf16",)


def test_a_run_prints_markdown_and_writes_json_and_traces(tmp_path: Path) -> None:
    out, traces = tmp_path / "bench.json", tmp_path / "traces"
    arguments = [*SMALL, "--precision", "fp32", "--repeats", "1", "--json", str(out), "--profile", str(traces)]
    done = CliRunner().invoke(app, ["bench", "step", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"^### step: .* 4 x 64 x 64, mask 0.75, batch 2$", done.stdout, re.MULTILINE)
    assert re.search(r"^\| tiny fp32 mgmae +\|", done.stdout, re.MULTILINE)
    tree = json.loads(out.read_text())
    assert [table["part"] for table in tree["tables"]] == ["step", "profile"]
    assert tree["options"]["models"] == ["tiny"]
    assert tree["options"]["profile"] == str(traces)
    assert {path.name for path in traces.iterdir()} == {"tiny-fp32-mgmae.json", "tiny-fp32-mgmae.md"}
    assert json.loads((traces / "tiny-fp32-mgmae.json").read_text())["traceEvents"]
    shares = [row["figures"]["share"]["median"] for row in tree["tables"][1]["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert "aten::mm" in (traces / "tiny-fp32-mgmae.md").read_text()


def test_parts_run_in_the_order_given_and_are_saved_as_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[list[str]] = []

    def part(name: str) -> Callable[[Bench], list[Table]]:
        def measure(bench: Bench) -> list[Table]:
            saved.append([table["part"] for table in json.loads((tmp_path / "b.json").read_text())["tables"]])
            return [Table(name, "nothing", [Row("a", {"b": Figure.of([1.0], "s")})])]

        return measure

    monkeypatch.setattr(run, "_RUN", {name: part(name) for name in run._RUN})
    shown: list[str] = []
    report = run.bench(BenchOptions(parts=("train", "data")), tmp_path / "b.json", shown.append)
    assert [table.part for table in report.tables] == ["train", "data"]
    assert saved == [[], ["train"]]
    assert [text.partition(":")[0] for text in shown[1:]] == ["### train", "### data"]


def test_a_compiler_that_does_not_work_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: Bench) -> list[Table]:
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand a long trace")

    monkeypatch.setitem(run._RUN, "step", fails)
    with pytest.raises(ConfigError, match=r"^--compile: torch.compile does not work here \(no compiler\)"):
        run.bench(BenchOptions(parts=("step",), compile=True))


def test_whole_runs_tell_clips_a_second_and_the_wait_for_data(make_bench: Callable[..., Bench]) -> None:
    (table,) = run_train(make_bench("train", precisions=("fp32",), steps=5))
    rows = {row.name: row.figures for row in table.rows}
    assert list(rows) == ["tiny fp32, tube masks", "tiny fp32, motion masks"]
    assert "4 steps a run" in table.title  # a run's clock is read four times
    for figures in rows.values():
        assert figures["rate"].unit == "clips/s"
        assert len(figures["rate"].samples) == 2
        assert len(figures["waits for data"].samples) == 2 * 3
        assert all(0 <= share <= 100 for share in figures["waits for data"].samples)
    assert "x tube" in rows["tiny fp32, motion masks"]
