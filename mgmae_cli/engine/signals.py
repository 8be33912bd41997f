"""SIGINT and SIGTERM as wishes: the loop ends its step, saves, and leaves."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class StopOnSignal:
    """Within it, SIGINT and SIGTERM only set `asked` and `number`; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.number = int(signal.SIGTERM)
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        except ValueError:  # not in the main thread, as in some notebooks: signals are somebody else's
            pass
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.number = True, number

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, old in self._old.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: set by something other than Python
