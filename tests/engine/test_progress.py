"""What people see."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from mgmae_cli.engine import progress
from mgmae_cli.engine.progress import Reporter, format_seconds, settings_table

RECORD = {"step": 10, "epoch": 0.5, "loss": 0.98765, "lr": 1.5e-4, "clips_per_s": 12.34, "data_wait": 0.256}


def _console(terminal: bool, width: int = 200) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width), text


def test_without_a_terminal_there_are_plain_lines() -> None:
    console, text = _console(terminal=False)
    reporter = Reporter(console, steps=100)
    reporter.advance(9)
    reporter.show(RECORD, eta=3723.4)
    reporter.close()
    expected = "step 10/100 epoch 0.50 loss 0.9877 lr 1.50e-04 12.3 clips/s wait 26% eta 1:02:03\n"
    assert text.getvalue() == expected


def test_lines_come_every_ten_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console, text = _console(terminal=False)
    reporter = Reporter(console, steps=50)
    for step in range(1, 51):
        now[0] += 1.0
        reporter.show({**RECORD, "step": step}, eta=0)
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in text.getvalue().splitlines()]
    assert shown == [1, 11, 21, 31, 41, 50]


def test_lines_are_neither_wrapped_nor_read_as_markup() -> None:
    console, text = _console(terminal=False, width=30)
    reporter = Reporter(console, steps=100)
    reporter.say("skipped /videos/[red]a b.mp4: " + "why " * 20, style="yellow")
    assert text.getvalue() == "skipped /videos/[red]a b.mp4: " + "why " * 20 + "\n"


def test_on_a_terminal_there_is_a_bar_with_the_figures() -> None:
    console, text = _console(terminal=True)
    reporter = Reporter(console, steps=100, done=5, verb="pre-training")
    reporter.advance(9)
    reporter.show(RECORD, eta=61)
    reporter.say("skipped x")
    reporter.close()
    for part in ("pre-training", "10/100", "loss 0.9877", "lr 1.50e-04", "eta 0:01:01", "skipped x"):
        assert part in text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_facts_are_shown_whole_however_narrow_the_console(terminal: bool) -> None:
    console, text = _console(terminal, width=30)
    path = "/" + "long/" * 20 + "[b]name"
    console.print(settings_table("mgmae pretrain", [("run folder", path), ("x", "1 2")]), soft_wrap=True)
    lines: list[Any] = text.getvalue().splitlines()
    assert len(lines) == 3
    assert path in lines[1]
    if not terminal:
        assert lines == ["mgmae pretrain", f"run folder  {path}", "x           1 2"]


def test_seconds_are_shown_as_hours_minutes_seconds() -> None:
    assert [format_seconds(seconds) for seconds in (-1, 0.4, 59.6, 3600)] == [
        "0:00:00",
        "0:00:00",
        "0:01:00",
        "1:00:00",
    ]
