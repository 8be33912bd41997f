"""A training step on the GPU: the CPU's losses, fused kernels, compiled or not, and no waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mgmae_cli.bench.step import StepSpec, example_batch, make_model, make_step
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.optim import decay_groups, make_adamw
from mgmae_cli.engine.step import PretrainTask, train_step
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import FlowEstimator
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.model.videomae import build_videomae
from mgmae_cli.motion.raft import RaftFlow

GRID = ClipGrid(frames=8, height=128, width=128, tubelet=2, patch=16)
SPEC = StepSpec("tiny", "fp32", GRID, 0.75, batch_size=4, device="cuda")


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Let whatever makes the CPU wait for the GPU fail."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loss_of(spec: StepSpec) -> float:
    return float(make_step(spec, make_model(spec))(0))


def test_losses_are_the_cpus() -> None:
    for half in (False, True):
        spec = replace(SPEC, half=half)
        assert loss_of(spec) == pytest.approx(loss_of(replace(spec, device="cpu")), rel=1e-5)
        bf16 = replace(spec, precision="bf16")
        assert loss_of(bf16) == pytest.approx(loss_of(spec), rel=0.02)


def test_transformers_model_with_our_weights_has_our_loss() -> None:
    pytest.importorskip("transformers")
    assert loss_of(SPEC) == pytest.approx(loss_of(replace(SPEC, peer=True)), rel=1e-5)


@pytest.mark.parametrize("change", [{"compiled": True}, {"checkpointing": True}], ids=lambda change: next(iter(change)))
@pytest.mark.parametrize("half", [False, True], ids=["all decoded", "half decoded"])
def test_variants_have_the_same_loss(change: dict[str, bool], half: bool) -> None:
    spec = replace(SPEC, precision="bf16", half=half)
    assert loss_of(replace(spec, **change)) == pytest.approx(loss_of(spec), rel=5e-3)


@pytest.mark.parametrize("model", ["tiny", "small", "base"])
def test_attention_is_flash_attention(model: str) -> None:
    spec = replace(SPEC, model=model, precision="bf16")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # fails where that can't be used
        assert loss_of(spec) > 0


def raft(tmp_path: Path) -> FlowEstimator:
    from torchvision.models.optical_flow import raft_small

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    return RaftFlow(RaftFlow.Options(weights=tmp_path / "raft.pth"))


@pytest.mark.parametrize("what", ["tube", "motion", "motion, random base", "motion, forward", "running cell"])
def test_a_step_never_waits_for_the_device(what: str, gpu: torch.device, tmp_path: Path) -> None:
    if what.startswith("motion"):
        base, warp = ("random" if "random" in what else "middle"), ("forward" if "forward" in what else "backward")
        flow = raft(tmp_path)
        flow.to(gpu)
        masker = Masker(MotionMask(MotionMask.Options(base_frame=base, warp=warp)), flow, GRID, 0.75)
        assert masker.stage == "device"
    else:
        masker = Masker(TubeMask(TubeMask.Options()), None, GRID, 0.75)
    place = Place(gpu, "bf16")
    model = build_videomae("tiny", GRID, seed=0).to(gpu).train()
    optimizer = make_adamw(decay_groups(model, 0.05), 1e-3, (0.9, 0.95), gpu)
    task = PretrainTask(model, masker, running_cell=what == "running cell")
    clips = replace(example_batch(replace(SPEC, device="cpu")), masks=None).pin_memory()
    if masker.stage == "worker":
        clips = replace(clips, masks=masker(clips.clips, torch.Generator().manual_seed(0))).pin_memory()

    def step(number: int) -> torch.Tensor:
        return train_step(task, [clips, clips], optimizer, place, (0, number), clip_grad=1.0)

    losses = [step(0)]  # memory is found and masks are counted once
    with refusing_to_wait():
        losses += [step(number) for number in range(1, 4)]
    first, *_, last = torch.stack(losses).tolist()
    assert 0 < last < first
