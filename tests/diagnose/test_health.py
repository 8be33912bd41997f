"""Warnings of pre-training: each is triggered once by what it is for, and healthy runs have none."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mgmae_cli.ablation.run_page import warning_lines
from mgmae_cli.config import HealthConfig, Layer, set_layer
from mgmae_cli.diagnose.health import HealthMonitor, judge_look
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.pretrain import clip_spec, pretrain, resumed_settings
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.interfaces import FlowEstimator, FlowRequest, MaskInputs
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.registry import Registry, build_registry
from mgmae_cli.settings import Settings, resolve_layers
from mgmae_cli.video.dataset import ClipDataset
from mgmae_cli.video.loader import Batch, collate

LIMITS = [name for name in HealthConfig.model_fields if name.startswith(("min_", "max_"))]
PLACE = Place(torch.device("cpu"), "fp32")


def settings_of(*assignments: str, registry: Registry | None = None) -> Settings:
    base = {
        "data.size": 48,
        "data.frames": 8,
        "data.workers": 0,
        "train.steps": 40,
        "train.batch_size": 4,
        "run.log_every": 1,
        "run.device": "cpu",
        "run.pictures": False,
        "health.look_time": 1.0,
    }
    return resolve_layers([Layer("test", base), set_layer(assignments)], registry)


def line(step: int, loss: float = 0.5, wait: float = 0.0, masks: float = 0.0) -> dict[str, Any]:
    return {"step": step, "loss": loss, "clips_per_s": 10.0, "data_wait": wait, "loader_masks": masks}


def batch_of(settings: Settings) -> Batch:
    masker = settings.make_masker()
    dataset = ClipDataset(settings.make_source(), clip_spec(settings.config), 0, masker)
    made = collate([dataset[0, index] for index in range(4)])
    assert isinstance(made, Batch)
    return made


def warnings_of(settings: Settings, lines: list[dict[str, Any]], batch: Batch | None = None) -> dict[str, str]:
    """Return what the monitor warns of over some log lines that all show one batch."""
    monitor = HealthMonitor(settings.config, settings.make_masker(), PLACE, settings.config.train.steps or 1)
    batch = batch or batch_of(settings)
    return {kind: text for record in lines for kind, text in monitor(record, batch).warnings.items()}


@pytest.mark.parametrize("mask", ["motion", "tube"])
def test_a_healthy_run_has_no_warnings(mask: str) -> None:
    falling = [line(step, 0.9 - 0.01 * step, wait=0.1, masks=0.9) for step in range(1, 41)]
    assert warnings_of(settings_of(f"mask.name={mask}"), falling) == {}


def test_a_healthy_run_that_draws_masks_on_its_device_has_no_warnings() -> None:
    settings = settings_of()
    batch = batch_of(settings)
    batch.masks = None
    assert warnings_of(settings, [line(1)], batch) == {}


class _Jumping(MotionMask):
    """Shows other patches in every slot, whatever moves."""

    name = "jumping"

    def sample(self, inputs: MaskInputs) -> torch.Tensor:
        noise = inputs.rand(inputs.batch, inputs.grid.slots, inputs.grid.patches)
        visible = noise.argsort(2).argsort(2) < inputs.visible_per_slot
        return ~visible.flatten(1)


class _Bunched(MotionMask):
    """Shows all its tokens in the first slots."""

    name = "bunched"

    def sample(self, inputs: MaskInputs) -> torch.Tensor:
        masked = torch.arange(inputs.grid.tokens) >= inputs.grid.visible_tokens(inputs.ratio)
        return masked.expand(inputs.batch, -1)


class _Wild(FlowEstimator):
    """Says that each place moves somewhere else."""

    name = "wild"

    def estimate(self, request: FlowRequest) -> torch.Tensor:
        shape = (*request.source.shape, 2, *request.clip.shape[3:])
        return 20 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def bad_plugins() -> Registry:
    registry = build_registry()
    for kind, cls in (("mask", _Jumping), ("mask", _Bunched), ("flow", _Wild)):
        registry.add(kind, cls, "tests 1.0")
    return registry


def test_flow_that_knows_no_motion_is_noticed() -> None:
    said = warnings_of(settings_of("flow.name=zero"), [line(1)])
    assert list(said) == ["flow_error"]
    assert said["flow_error"].startswith(
        "zero flow explains the clips hardly better than no motion at all (colour difference 1.00 of that of standing "
        "still, above health.max_flow_error = 0.9)"
    )


def test_flow_that_contradicts_itself_is_noticed() -> None:
    said = warnings_of(settings_of("flow.name=wild", registry=bad_plugins()), [line(1)])
    assert "wild flow contradicts itself or leaves the frame in" in said["flow_lost"]
    assert "wild flow explains the clips hardly better" in said["flow_error"]


def test_exact_flow_is_not_judged() -> None:
    assert (
        warnings_of(settings_of("flow.name=truth", "health.max_flow_lost=0", "health.max_flow_error=0"), [line(1)])
        == {}
    )


def test_a_low_mask_ratio_is_noticed() -> None:
    said = warnings_of(settings_of("mask.name=tube", "mask.ratio=0.5"), [line(1)])
    assert said["mask_ratio"].startswith("only 50% of the tokens are masked, below health.min_mask_ratio = 0.75")


def test_masks_that_follow_nothing_are_noticed_and_leak() -> None:
    said = warnings_of(settings_of("data.frames=16", "mask.name=jumping", registry=bad_plugins()), [line(1)])
    assert "the masks don't follow the motion" in said["life"]
    assert "jumping masks leak: another slot shows the content of" in said["leak"]


def test_random_masks_leak_but_were_not_meant_to_follow_anything() -> None:
    assert list(warnings_of(settings_of("mask.name=random", "data.frames=16"), [line(1)])) == ["leak"]


def test_slots_that_show_very_different_numbers_of_tokens_are_noticed() -> None:
    said = warnings_of(settings_of("mask.name=bunched", registry=bad_plugins()), [line(1)])
    assert "some slots show next to nothing" in said["slot_spread"]


@pytest.mark.parametrize(("masks", "blamed"), [(0.9, "masks and dis flow"), (0.1, "reading and cropping")])
def test_waiting_is_noticed_and_its_cause_named(masks: float, blamed: str) -> None:
    lines = [line(step, wait=0.5, masks=masks) for step in range(1, 7)]
    said = warnings_of(settings_of(), lines)
    assert said["data_wait"].startswith("training waits 50% of the time for clips")
    assert f"90% of the loader's time goes into {blamed}" in said["data_wait"]


def test_waiting_for_the_first_clips_is_no_warning() -> None:
    lines = [line(1, wait=0.95), *[line(step, wait=0.05) for step in range(2, 9)]]
    assert warnings_of(settings_of(), lines) == {}


def test_flow_that_takes_most_of_a_step_on_the_device_is_noticed() -> None:
    settings = settings_of()
    batch = batch_of(settings)
    batch.masks = None  # as where the training device draws them
    said = warnings_of(settings, [{**line(1), "clips_per_s": 1e6}], batch)
    assert "motion masks with dis flow take" in said["mask_time"]


def test_a_loss_that_rises_is_noticed_and_one_that_only_scatters_is_not() -> None:
    settings, batch = settings_of("health.max_loss=null"), batch_of(settings_of())
    steady = [0.6 + 0.02 * (step % 2) for step in range(10)]
    rising = [*steady, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9]
    assert "loss_rise" in warnings_of(settings, [line(n + 1, loss) for n, loss in enumerate(rising)], batch)
    wild = [0.3 + 0.6 * (step % 2) for step in range(20)]
    assert warnings_of(settings, [line(n + 1, loss) for n, loss in enumerate(wild)], batch) == {}


def test_a_loss_no_better_than_guessing_means_is_noticed_in_the_second_half() -> None:
    settings, batch = settings_of(), batch_of(settings_of())
    flat = [line(step, 0.99) for step in range(1, 41)]
    assert warnings_of(settings, flat[:20], batch) == {}
    assert "after 40 steps the loss is still 1.00 of that of guessing" in warnings_of(settings, flat, batch)["loss"]


@pytest.mark.parametrize("limit", LIMITS)
def test_every_warning_can_be_turned_off(limit: str) -> None:
    worst = {"min_": 0.0, "max_": 1e9}[limit[:4]]
    looked_at = ("mask_ratio", "slot_spread", "life", "leak", "flow_error", "flow_lost", "mask_time")
    figures = {**dict.fromkeys(looked_at, worst), "life_slots": 1.0, "life_limit": 8.0}
    masker = settings_of().make_masker()
    kind = limit[4:]
    if kind not in figures:
        assert kind in ("data_wait", "loss_rise", "loss")
        lines = [line(step, 0.99 + (step > 20), wait=0.9) for step in range(1, 41)]
        assert kind in warnings_of(settings_of(), lines)
        assert kind not in warnings_of(settings_of(f"health.{limit}=null"), lines)
        return
    assert kind in dict(judge_look(figures, HealthConfig(), masker))
    assert kind not in dict(judge_look(figures, HealthConfig.model_validate({limit: None}), masker))


def test_looks_come_every_so_many_steps_and_never_take_more_than_their_share_of_the_time() -> None:
    settings = settings_of("health.every=10")
    masker, batch = settings.make_masker(), batch_of(settings)
    monitor = HealthMonitor(settings.config, masker, PLACE, 40)
    assert [step for step in range(1, 41) if monitor(line(step), batch).figures] == [1, 11, 21, 31]
    settings = settings_of("health.every=1", "health.look_time=1e-9")
    monitor = HealthMonitor(settings.config, masker, PLACE, 40)
    assert [step for step in range(1, 41) if monitor(line(step), batch).figures] == [1]


def test_a_look_changes_neither_the_batch_nor_random_numbers() -> None:
    settings = settings_of()
    batch = batch_of(settings)
    clips, masks, state = batch.clips.clone(), batch.masks, torch.random.get_rng_state()
    assert masks is not None
    masks = masks.clone()
    HealthMonitor(settings.config, settings.make_masker(), PLACE, 40)(line(1), batch)
    assert torch.equal(batch.clips, clips)
    assert batch.masks is not None
    assert torch.equal(batch.masks, masks)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_tells_each_kind_once_and_keeps_all_of_them_in_its_metrics(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, width=60)
    small = (
        "mask.ratio=0.5",
        "train.steps=4",
        "health.every=1",
        "health.max_leak=null",
        f"run.out={tmp_path / 'run'}",
        "model.name=tiny",
    )
    pretrain(settings_of(*small), console=console, make_monitor=HealthMonitor)
    assert text.getvalue().count("warning: only 50% of the tokens are masked") == 1
    records = read_metrics(tmp_path / "run")
    assert [list(record["warnings"]) for record in records] == [["mask_ratio"]] * 4
    assert warning_lines(records)["mask_ratio"].startswith("steps 1 to 4, 4 times: only 50%")
    assert json.dumps(records[0]["health"])
    # thresholds may change from one part of a run to the next
    resumed_settings(tmp_path / "run", set_layer(["health.min_mask_ratio=null"]))


def test_warnings_change_nothing_of_what_is_learned(tmp_path: Path) -> None:
    losses = []
    for name, monitor in (("with", HealthMonitor), ("without", None)):
        small = ("train.steps=3", "health.every=1", f"run.out={tmp_path / name}", "model.name=tiny")
        pretrain(settings_of(*small), console=Console(quiet=True), make_monitor=monitor)
        losses.append([record["loss"] for record in read_metrics(tmp_path / name)])
    assert losses[0] == losses[1]
