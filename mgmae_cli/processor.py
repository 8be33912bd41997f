"""What the operating system tells about the CPU: some of torch's operators are slow on some."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the CPU's name; the platform module often knows its kind only."""
    return _facts().get("model name") or platform.processor() or platform.machine()


def is_intel() -> bool:
    """Whether Linux says that the CPU is made by Intel."""
    return _facts().get("vendor_id") == "GenuineIntel"


def has_amx() -> bool:
    """Whether Linux says that the CPU multiplies bfloat16 matrices in tiles (AMX)."""
    return "amx_bf16" in _facts().get("flags", "").split()


@lru_cache(maxsize=1)
def _facts() -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first core; nothing where there is none."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    return facts
