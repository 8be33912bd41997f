"""What people see while a run goes: a start-up table, then a bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0


class _Eta(ProgressColumn):
    """Time left, from the speed of the last steps; rich's own starts anew with every resumed run."""

    def render(self, task: Any) -> Text:
        left = task.fields.get("eta")
        return Text("eta --:--" if left is None else f"eta {format_seconds(left)}", style="progress.remaining")


class Reporter:
    """Shows a run's progress.

    Args:
        console: where to; a bar if it is a terminal, else a line every few seconds.
        steps: all steps of the run.
        done: steps already done by an earlier, resumed part.
        verb: what the run does, for the bar.
    """

    def __init__(self, console: Console, steps: int, done: int = 0, verb: str = "pre-training") -> None:
        self.console = console
        self.steps = steps
        self.verb = verb
        self._last_line = 0.0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                _Eta(),
                console=console,
            )
            self._task = self._progress.add_task(verb, total=steps, completed=done, figures="", eta=None)
            self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar to `step`, without new figures."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def show(self, record: Mapping[str, Any], eta: float) -> None:
        """Show a record of metrics and the seconds left."""
        figures = " ".join(_figures(record))
        if self._progress is not None:
            self._progress.update(self._task, completed=record["step"], figures=figures, eta=eta)
            return
        now, last = time.monotonic(), record["step"] >= self.steps
        if last or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.say(f"step {record['step']}/{self.steps} {figures} eta {format_seconds(eta)}")

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self.console.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._progress is not None:
            self._progress.stop()


def _figures(record: Mapping[str, Any]) -> Iterable[str]:
    yield f"epoch {record['epoch']:.2f}"
    yield f"loss {record['loss']:.4f}"
    yield f"lr {record['lr']:.2e}"
    yield f"{record['clips_per_s']:.1f} clips/s"
    yield f"wait {100 * record['data_wait']:.0f}%"


def format_seconds(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    return str(timedelta(seconds=round(max(0.0, seconds))))


def settings_table(title: str, rows: Iterable[tuple[str, str]]) -> Text:
    """Return two columns of facts; nothing is cut, however narrow the console is."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows) + 2
    text = Text(title, style="bold")
    for name, value in rows:
        text.append(f"\n{name:<{width}}", style="not bold dim")
        text.append(value, style="not bold")
    return text
