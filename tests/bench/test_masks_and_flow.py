"""The parts `masks` and `flow`: what takes part, what is the same, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from mgmae_cli.bench import masks
from mgmae_cli.bench.clips import example_clips
from mgmae_cli.bench.flow import PEER, SAME, run_flow
from mgmae_cli.bench.masks import RecordedFlow, run_masks
from mgmae_cli.bench.measure import Competitor, Timings
from mgmae_cli.bench.options import Bench
from mgmae_cli.interfaces import FlowEstimator, FlowRequest, MaskInputs, MaskStrategy, PluginOptions
from mgmae_cli.masking.contract import ShiftFlow


class Wants(PluginOptions):
    """Options that have no default."""

    number: int


class Picky(MaskStrategy):
    """A strategy that can't do without options."""

    name = "picky"
    Options = Wants

    def sample(self, inputs: MaskInputs) -> Tensor:
        raise NotImplementedError


class PickyFlow(FlowEstimator):
    """An estimator that can't do without options."""

    name = "picky-flow"
    Options: ClassVar[type[PluginOptions]] = Wants

    def estimate(self, request: FlowRequest) -> Tensor:
        raise NotImplementedError


def test_every_registered_strategy_is_measured_with_and_without_flow(make_bench: Callable[..., Bench]) -> None:
    (table,) = run_masks(make_bench("masks"))
    rows = {row.name: row.figures for row in table.rows}
    assert list(rows) == [
        "motion",
        "motion with flow dis",
        "motion:map_stride=1",
        "motion:warp=forward",
        "motion:warp=forward,map_stride=1",
        "motion:flow_step=2",
        "motion:flow_step=2 with flow dis",
        "random",
        "tube",
        "tiny fp32 mgmae step",
        "tiny bf16 mgmae step",
    ]
    for name in list(rows)[:-2]:
        assert {"a clip", "of a tiny fp32 step", "of a tiny bf16 step"} <= set(rows[name])
    compared = {name for name, figures in rows.items() if "visible as with map_stride=1" in figures}
    assert compared == {"motion", "motion:warp=forward"}
    assert all(0 < rows[name]["visible as with map_stride=1"].median <= 100 for name in compared)


def test_a_mask_on_one_core_takes_a_share_of_the_steps_time_on_all_cores(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clip's mask takes 1 s of a core; a step of two clips takes 4 s of two cores."""

    def race(competitors: Sequence[Competitor], repeats: int, say: object) -> dict[str, Timings]:
        return {each.name: Timings(0.0, (8.0 if each.one_core else 4.0,), each.work) for each in competitors}

    monkeypatch.setattr(masks, "race", race)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (table,) = run_masks(make_bench("masks", precisions=("fp32",)))
    rows = {row.name: row.figures for row in table.rows}
    assert rows["tube"]["a clip"].median == 1000
    assert rows["tube"]["of a tiny fp32 step"].median == pytest.approx(25)


def test_a_strategy_that_needs_options_is_left_out_and_named(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("masks", repeats=1)
    bench.registry.add("mask", Picky, "tests 1.0")
    (table,) = run_masks(bench)
    assert "picky" not in {row.name for row in table.rows}
    assert any(note.startswith("picky is left out: ") and "number" in note for note in table.notes)


def test_masks_with_recorded_flow_are_those_with_the_flow_itself(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("masks")
    clips = example_clips(bench, 2)
    without, with_flow = (each for each in masks._drawers(bench)[0] if each.strategy == "motion" and not each.options)
    assert (without.flow, with_flow.flow) == (None, "dis")
    assert torch.equal(without.draw(clips), with_flow.draw(clips))
    assert torch.equal(without.draw(clips), without.draw(clips))


def test_recorded_flow_asks_once_for_each_clip_and_set_of_pairs() -> None:
    shift = ShiftFlow(1.0)
    recorded = RecordedFlow(shift)
    clips = torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8)
    first = torch.arange(3)[None]
    for clip in (clips[:1], clips[1:], clips[:1]):
        recorded.estimate(FlowRequest(clip, first, first + 1))
        recorded.estimate(FlowRequest(clip, first + 1, first))
    assert len(shift.requests) == 4


def test_the_agreement_of_masks_is_the_share_of_visible_tokens_in_common() -> None:
    mask = torch.tensor([[False, False, True, True]])
    other = torch.tensor([[False, True, False, True]])
    assert masks._agreement(mask, other).median == 50
    assert masks._agreement(mask, mask).median == 100


def test_every_estimator_is_measured_and_raft_equals_torchvisions_model(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("flow", models=("small",), mask_ratio=0.9, frames=2, size=128, repeats=1)
    bench.registry.add("flow", PickyFlow, "tests 1.0")
    (table,) = run_flow(bench)
    rows = {row.name: row.figures for row in table.rows}
    assert list(rows) == ["dis", "raft", "tvl1", "zero", SAME, PEER]
    assert all(figures["a pair"].unit == "ms" for figures in rows.values())
    assert {f"x {PEER}", "mean difference", "largest"} <= set(rows[SAME])
    assert rows[SAME]["mean difference"].median <= rows[SAME]["largest"].median < 1e-3
    assert "RAFT-small has random weights" in table.notes
    assert any(note.startswith("picky-flow is left out: ") for note in table.notes)


def test_frames_too_small_for_torchvisions_model_are_measured_without_it(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("flow", models=("small",), mask_ratio=0.9, frames=2, repeats=1)
    (table,) = run_flow(bench)
    assert PEER not in {row.name for row in table.rows}
    assert any("128" in note for note in table.notes)


def test_weights_that_are_given_are_used_and_named(make_bench: Callable[..., Bench], shared_data: Path) -> None:
    weights = shared_data / "weights" / "raft-small.pth"
    bench = make_bench("flow", models=("small",), mask_ratio=0.9, frames=2, size=128, repeats=1, weights=weights)
    (table,) = run_flow(bench)
    assert "RAFT-small has raft-small.pth" in table.notes
