"""Operations by the closed form against those that torch counts, for our model and transformers'."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mgmae_cli.bench.compute import step_operations
from mgmae_cli.bench.step import StepSpec, make_model, make_step
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model import videomae

SPEC = StepSpec("tiny", "fp32", ClipGrid(4, 64, 96), 0.75, batch_size=1, device="cpu")


def counted(spec: StepSpec) -> int:
    """Count a step's operations; plain attention computes nothing twice, as fused kernels do."""
    step = make_step(spec, make_model(spec))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(0)
    return counter.get_total_flops()


def test_operations_are_those_that_torch_counts() -> None:
    assert SPEC.operations == counted(SPEC)


def test_operations_with_half_of_the_tokens_decoded_are_those_that_torch_counts() -> None:
    half = replace(SPEC, half=True)
    assert half.operations == counted(half) < SPEC.operations


def test_operations_of_transformers_model_are_those_that_torch_counts() -> None:
    pytest.importorskip("transformers")
    peer = replace(SPEC, peer=True)
    assert peer.operations == counted(peer) > SPEC.operations


def test_checkpointing_counts_no_operation_twice() -> None:
    again = replace(SPEC, checkpointing=True)
    assert again.operations == SPEC.operations < counted(again)


def test_a_vit_s_clip_has_63_billion_operations() -> None:
    """The figure that shares of the matrix rate rest on, at the paper's size."""
    operations = step_operations(videomae.SIZES["small"], ClipGrid(), visible=160, decoded=1408)
    assert round(operations / 1e9, 1) == 63.1
