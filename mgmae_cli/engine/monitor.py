"""What may look at a run while it goes: `mgmae_cli.diagnose.health` does; the engine knows only this much of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mgmae_cli.video.loader import Batch


@dataclass(frozen=True)
class Findings:
    """What a monitor adds to a line of metrics.jsonl.

    Args:
        figures: what it measured, by name.
        warnings: kind -> one line of text; the terminal shows each kind once.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)


# Called by the main rank before each line of metrics.jsonl, with that record and the newest batch, on the CPU. It may
# not change anything: neither the batch nor the global random numbers.
Monitor: TypeAlias = Callable[[Mapping[str, Any], Batch], Findings]
