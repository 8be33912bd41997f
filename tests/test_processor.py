"""What is known of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgmae_cli import processor

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu avx512f amx_bf16 amx_tile

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return the file that is read in place of Linux's."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", path)
    processor._facts.cache_clear()
    yield path
    processor._facts.cache_clear()


def test_the_first_core_tells_name_maker_and_tiles(cpuinfo: Path) -> None:
    cpuinfo.write_text(XEON)
    assert processor.processor_name() == "Intel(R) Xeon(R) Processor"
    assert processor.is_intel()
    assert processor.has_amx()


def test_without_linux_nothing_is_claimed(cpuinfo: Path) -> None:
    assert not cpuinfo.exists()
    assert processor.processor_name()
    assert not processor.is_intel()
    assert not processor.has_amx()
