"""The part `masks`: what masks cost, with and without their flow, beside a training step.

A mask that a loader's worker draws is measured as there: one clip at a time, on one core. On a CPU, where workers and
steps share the cores, its share of a step is that of the time of all cores: what it adds to a run. On a GPU it is that
of the step's wall time, though workers draw masks while the GPU is busy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.bench.clips import example_clips, shapes_settings
from mgmae_cli.bench.measure import Competitor, Figure, clock_of, race
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.results import Row, Table
from mgmae_cli.bench.step import plain_specs, step_competitors
from mgmae_cli.errors import MgmaeError
from mgmae_cli.interfaces import FlowEstimator, FlowRequest
from mgmae_cli.masking.masker import Masker
from mgmae_cli.seeds import derive_generator

CLIPS = 8  # whose masks are drawn in each turn; on a GPU, a batch

# Options of strategies whose cost is of interest, besides the default ones.
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "motion": ({"map_stride": 1}, {"warp": "forward"}, {"warp": "forward", "map_stride": 1}, {"flow_step": 2}),
}


@dataclass(frozen=True)
class Drawer:
    """A strategy with options, ready to draw.

    Args:
        strategy: its name.
        options: those that are not the default.
        masker: draws.
        flow: the estimator that it waits for; None: it uses none, or has been given the flow.
    """

    strategy: str
    options: Mapping[str, Any]
    masker: Masker
    flow: str | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        chosen = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.strategy}{':' if chosen else ''}{chosen}{f' with flow {self.flow}' if self.flow else ''}"

    def draw(self, clips: Tensor) -> Tensor:
        """Return the masks (B, N) of clips (B, 3, T, H, W), drawn where and as a run does it; the same each time."""
        if self.masker.stage == "device":
            return self.masker(clips, derive_generator(0))
        return torch.cat([self.masker(clip[None], derive_generator(number)) for number, clip in enumerate(clips)])


class RecordedFlow(FlowEstimator):
    """Gives the answers that another estimator gave the first time, so that masks can be timed without it."""

    name = "recorded"

    def __init__(self, estimator: FlowEstimator) -> None:
        super().__init__(options=None)
        self._estimator = estimator
        self._answers: dict[object, Tensor] = {}

    def estimate(self, request: FlowRequest) -> Tensor:
        """Return the flow of these pairs of this clip, which must stay where it is in memory."""
        question = (request.clip.data_ptr(), *request.source.flatten().tolist(), *request.target.flatten().tolist())
        if question not in self._answers:
            self._answers[question] = self._estimator.estimate(request)
        return self._answers[question]


def run_masks(bench: Bench) -> list[Table]:
    """Measure the masks of all registered strategies in turns with training steps."""
    drawers, notes = _drawers(bench)
    count = bench.batch_size if bench.device.type == "cuda" else CLIPS
    clips = example_clips(bench, count)
    specs = plain_specs(bench)
    competitors = [_competitor(drawer, clips, bench.device) for drawer in drawers]
    timings = race([*competitors, *step_competitors(specs)], bench.options.repeats, bench.say)
    masks = {drawer.name: drawer.draw(clips.to(_device(drawer, bench.device))) for drawer in drawers}
    cores = torch.get_num_threads() if bench.device.type == "cpu" else 1
    rows = []
    for drawer in drawers:
        own = timings[drawer.name]
        figures = {"a clip": own.each("ms")}
        for spec in specs:
            step = timings[spec.name]
            on_one_core = replace(step, work=step.work / cores)
            figures[f"of a {spec.model} {spec.precision} step"] = own.share_of(on_one_core)
        full = replace(drawer, options={**drawer.options, "map_stride": 1}).name
        if full in masks and full != drawer.name:
            figures["visible as with map_stride=1"] = _agreement(masks[drawer.name], masks[full])
        rows.append(Row(drawer.name, figures))
    rows += [Row(f"{spec.name} step", {"a clip": timings[spec.name].each("ms")}) for spec in specs]
    grid = bench.options.grid
    title = (
        f"drawn for {count} clips of {grid.frames} x {grid.height} x {grid.width}, mask {bench.options.mask_ratio:g}"
    )
    return [Table("masks", title, rows, [*NOTES, *notes])]


NOTES = (
    "masks that a loader's worker draws have one core, steps have all; on a CPU, shares are of the time on all of them",
    "strategies that use flow and name none were given it",
)


def _drawers(bench: Bench) -> tuple[list[Drawer], list[str]]:
    """Return every strategy with each set of options, and a note on each that can't be built."""
    drawers: list[Drawer] = []
    notes = []
    for strategy in bench.registry.names("mask"):
        for options in ({}, *VARIANTS.get(strategy, ())):
            try:
                drawers += _with_and_without_flow(bench, strategy, options)
            except MgmaeError as error:
                notes.append(f"{strategy} is left out: {error}")
    return drawers, notes


def _with_and_without_flow(bench: Bench, strategy: str, options: Mapping[str, Any]) -> Iterator[Drawer]:
    chosen = {"mask.name": strategy, **{f"mask.options.{key}": value for key, value in options.items()}}
    masker = shapes_settings(bench, chosen).make_masker()
    if masker.estimator is None:
        yield Drawer(strategy, options, masker)
        return
    yield Drawer(strategy, options, replace(masker, estimator=RecordedFlow(masker.estimator)))
    if not options or "flow_step" in options:  # other options change what is made of the flow, not the flow
        yield Drawer(strategy, options, masker, masker.estimator.name)
        if bench.options.weights is not None and masker.estimator.name != "raft":
            raft = {"flow.name": "raft", "flow.options.weights": str(bench.options.weights)}
            masker = shapes_settings(bench, {**chosen, **raft}).make_masker()
            assert masker.estimator is not None
            masker.estimator.to(bench.device)
            yield Drawer(strategy, options, masker, "raft")


def _device(drawer: Drawer, device: torch.device) -> torch.device:
    return device if drawer.masker.stage == "device" else torch.device("cpu")


def _competitor(drawer: Drawer, clips: Tensor, device: torch.device) -> Competitor:
    where = _device(drawer, device)
    there = clips.to(where)
    in_worker = drawer.masker.stage == "worker"
    return Competitor(drawer.name, lambda _: drawer.draw(there), len(clips), clock_of(where), one_core=in_worker)


def _agreement(masks: Tensor, others: Tensor) -> Figure:
    """Return the share of the visible tokens of one set of masks that are also visible in the other, clip by clip."""
    both, visible = (~masks & ~others).sum(1), (~others).sum(1)
    return Figure.of((100 * both / visible).tolist(), "%")
