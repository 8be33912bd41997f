"""Masks and flow on the GPU are the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mgmae_cli.bench.clips import example_clips
from mgmae_cli.bench.options import Bench, BenchOptions
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import FlowEstimator, FlowRequest, MaskStrategy
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.motion.raft import RaftFlow
from mgmae_cli.registry import default_registry
from mgmae_cli.seeds import derive_generator
from tests.masking.test_contract import GRIDS, STRATEGIES, ShiftFlow, described, mask_inputs

GRID = ClipGrid(frames=16, height=224, width=224, tubelet=2, patch=16)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=described)
def test_device_and_cpu_give_the_same_mask(strategy: MaskStrategy, gpu: torch.device) -> None:
    for grid in GRIDS:
        on_cpu, on_gpu = (
            strategy.sample(mask_inputs(grid, 0.9, 4, 7, ShiftFlow(2.3, -1.2), device)).cpu() for device in ("cpu", gpu)
        )
        assert (on_cpu == on_gpu).float().mean() > 0.999


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return example_clips(Bench(BenchOptions(), torch.device("cpu"), default_registry()), 2)


def flow_of(estimator: FlowEstimator, clips: Tensor) -> Tensor:
    source = torch.arange(15)[None].expand(len(clips), -1)
    estimator.to(clips.device)
    return estimator.estimate(FlowRequest(clips, source, source + 1)).cpu()


def test_raft_gives_the_cpus_flow(clips: Tensor, gpu: torch.device, shared_data: Path) -> None:
    def options(precision: str) -> RaftFlow.Options:
        return RaftFlow.Options(weights=shared_data / "weights" / "raft-small.pth", precision=precision)

    on_cpu = flow_of(RaftFlow(options("fp32")), clips)
    on_gpu = flow_of(RaftFlow(options("fp32")), clips.to(gpu))
    assert on_cpu.abs().mean() > 0.5
    differences = (on_gpu - on_cpu).abs()
    assert differences.mean() < 1e-3
    assert differences.max() < 0.1  # where a GRU's gates amplify the last bits
    in_bf16 = flow_of(RaftFlow(options("auto")), clips.to(gpu))
    assert 0 < (in_bf16 - on_cpu).abs().mean() < 0.1


def test_masks_by_raft_hardly_differ(clips: Tensor, gpu: torch.device, shared_data: Path) -> None:
    flow = RaftFlow(RaftFlow.Options(weights=shared_data / "weights" / "raft-small.pth", precision="fp32"))
    masker = Masker(MotionMask(MotionMask.Options()), flow, GRID, 0.9)
    on_cpu, on_gpu = (masker(clips.to(device), derive_generator(3)).cpu() for device in ("cpu", gpu))
    with torch.autocast("cuda", torch.bfloat16):
        beside_bf16 = masker(clips.to(gpu), derive_generator(3)).cpu()
    assert torch.equal(beside_bf16, on_gpu)
    both = (~on_cpu & ~on_gpu).sum() / (~on_cpu).sum()
    assert both > 0.98
