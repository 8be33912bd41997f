"""The errors a user can mend: each message names the file or key, the value, and the fix.

`mgmae` prints an MgmaeError as one line and exits with code 2. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class MgmaeError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(MgmaeError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(MgmaeError):
    """A data source is missing, empty, or can't be understood."""


class PluginError(MgmaeError):
    """A plugin is unknown, failed to load, clashes with another, or returned the wrong thing."""


class RunError(MgmaeError):
    """A run can't start, go on, or be saved: a taken folder, a full disk, a loss that is not finite."""


class Interrupted(RunError):
    """A signal asked the run to stop; its state is saved and can be resumed.

    Args:
        step: steps done and saved.
        number: SIGINT or SIGTERM; the exit code is 128 more, as shells have it.
        folder: the run's folder.
    """

    def __init__(self, step: int, number: int, folder: object = "the run's folder") -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; step {step} is saved; go on with --resume {folder}"
        )
        self.exit_code = 128 + number


class CheckpointError(MgmaeError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class UnreadableClip(MgmaeError):
    """One video can't be decoded. Training skips and counts it; testing stops.

    Args:
        name: the file's path (or the source's name for the clip).
        reason: what went wrong, in one line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableClip], tuple[str, str]]:
        return UnreadableClip, (self.name, self.reason)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f" (did you mean {near[0]!r}?)" if near else ""
