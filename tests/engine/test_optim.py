"""The learning rate's course, and which parameters decay."""

from __future__ import annotations

import pytest
import torch

from mgmae_cli.config import RunSection
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.optim import Schedule, decay_groups, make_adamw, set_lr
from mgmae_cli.engine.run import make_plan, make_schedule
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.videomae import VideoMAE
from tests.engine.conftest import MICRO


def test_the_rate_rises_linearly_peaks_and_follows_half_a_cosine_to_its_end() -> None:
    schedule = Schedule(peak=8.0, end=2.0, steps=11, warmup=3)
    assert [schedule(step) for step in range(4)] == [2.0, 4.0, 6.0, 8.0]
    assert schedule(5) == pytest.approx(2 + 6 * (1 + 2**-0.5) / 2)  # a quarter of the way down
    assert schedule(7) == pytest.approx(5.0)  # half of it
    assert schedule(9) == pytest.approx(2 + 6 * (1 - 2**-0.5) / 2)
    assert schedule(11) == pytest.approx(2.0)
    assert schedule(50) == pytest.approx(2.0)
    assert sorted((schedule(step) for step in range(3, 12)), reverse=True) == [schedule(step) for step in range(3, 12)]


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert Schedule(peak=8.0, end=2.0, steps=11, warmup=0)(0) == 8.0
    assert Schedule(peak=8.0, end=2.0, steps=1, warmup=0)(0) == 8.0


def test_rates_are_scaled_by_the_clips_of_a_step() -> None:
    run = RunSection()
    place = Place(torch.device("cpu"), "fp32", rank=1, ranks=4)
    plan = make_plan(32, 2, 4, None, 3.0, videos=100, place=place, run=run)
    assert (plan.clips_per_step, plan.videos_per_step) == (256, 64)
    assert plan.steps == 5  # 300 videos, 64 a step
    schedule = make_schedule(1e-3, 1e-5, 0.4, plan)
    assert (schedule.peak, schedule.end, schedule.warmup, schedule.steps) == (1e-3, 1e-5, 2, 5)
    half = make_plan(16, 2, 4, 10, None, videos=100, place=place, run=run)
    assert half.steps == 10
    assert make_schedule(1e-3, 1e-5, 0.4, half).peak == 5e-4


def test_an_epoch_takes_whole_steps_and_floats_add_none() -> None:
    run = RunSection()
    place = Place(torch.device("cpu"), "fp32")

    def steps(epochs: float, videos: int) -> int:
        return make_plan(1, 1, 1, None, epochs, videos=videos, place=place, run=run).steps

    assert 0.07 * 100 > 7
    assert (steps(0.07, 100), steps(1.0, 7), steps(1.01, 7), steps(0.01, 7)) == (7, 7, 8, 1)


@pytest.mark.parametrize("layer_scale", [False, True])
def test_weights_decay_but_biases_norms_and_the_mask_token_do_not_and_none_is_forgotten(layer_scale: bool) -> None:
    model = VideoMAE(ClipGrid(4, 16, 16, 2, 8), MICRO, layer_scale=layer_scale)
    decayed, free = decay_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in (decayed, free)]  # type: ignore[attr-defined]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    assert all(name.endswith("weight") and "norm" not in name for name in groups[0])
    assert all(name.endswith(("bias", "gamma_1", "gamma_2", "mask_token")) or "norm" in name for name in groups[1])
    assert "mask_token" in groups[1]
    assert "encoder.patch_embed.proj.weight" in groups[0]


def test_frozen_parameters_are_in_no_group() -> None:
    model = VideoMAE(ClipGrid(4, 16, 16, 2, 8), MICRO)
    model.encoder.requires_grad_(False)
    held = sum(len(group["params"]) for group in decay_groups(model, 0.05))  # type: ignore[arg-type, misc]
    assert held == sum(parameter.requires_grad for parameter in model.parameters())


def test_a_group_may_have_its_own_scale_of_the_rate() -> None:
    one, two = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups: list[dict[str, object]] = [{"params": [one]}, {"params": [two], "lr_scale": 0.25}]
    optimizer = make_adamw(groups, 1.0, (0.9, 0.95), torch.device("cpu"))
    set_lr(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.2]


def test_decay_shrinks_weights_by_rate_times_decay_and_leaves_free_ones() -> None:
    decayed, free = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    groups: list[dict[str, object]] = [
        {"params": [decayed], "weight_decay": 0.5},
        {"params": [free], "weight_decay": 0.0},
    ]
    optimizer = make_adamw(groups, 0.1, (0.9, 0.95), torch.device("cpu"))
    (0.0 * (decayed + free).sum()).backward()
    optimizer.step()
    assert decayed.tolist() == pytest.approx([0.95] * 3)
    assert free.tolist() == [1.0] * 3
