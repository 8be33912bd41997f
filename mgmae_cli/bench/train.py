"""The part `train`: the engine from clip source to optimiser, on `shapes`, with tube and with motion masks.

The runs are whole ones, with workers, checkpoints and all, in a folder that is thrown away. The first quarter of a
run's steps, in which workers start and models are compiled, does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from mgmae_cli.bench.clips import shapes_settings
from mgmae_cli.bench.measure import Competitor, Figure, race
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.results import Row, Table
from mgmae_cli.engine.pretrain import pretrain
from mgmae_cli.engine.run_folder import read_metrics

MASKS = ("tube", "motion")
READINGS = 4  # of a run's clock


@dataclass
class TrainRun:
    """A run that is done again in each round; `waits` holds its shares of time spent waiting for data."""

    bench: Bench
    model: str
    precision: str
    mask: str
    compiled: bool
    waits: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision}{', compiled' if self.compiled else ''}, {self.mask} masks"

    @property
    def log_every(self) -> int:
        return self.bench.options.steps // READINGS

    @property
    def clips(self) -> int:
        """Clips of the steps that count."""
        return (READINGS - 1) * self.log_every * self.bench.batch_size

    def __call__(self, number: int) -> float:
        """Train; return the seconds of the steps that count, by the run's own clock."""
        with TemporaryDirectory() as folder:
            settings = shapes_settings(
                self.bench,
                {
                    "mask.name": self.mask,
                    "model.name": self.model,
                    "train.steps": READINGS * self.log_every,
                    "run.out": str(Path(folder) / "run"),
                    "run.device": str(self.bench.device),
                    "run.precision": self.precision,
                    "run.compile": self.compiled,
                    "run.log_every": self.log_every,
                },
            )
            pretrain(settings, console=Console(quiet=True))
            counted = read_metrics(Path(folder) / "run")[1:]
        self.waits += [100 * record["data_wait"] for record in counted]
        return float(sum(self.clips / len(counted) / record["clips_per_s"] for record in counted))


def run_train(bench: Bench) -> list[Table]:
    """Train in turns with each mask; tell clips per second and how much of the time was spent waiting for data."""
    options, grid = bench.options, bench.options.grid
    runs = [
        TrainRun(bench, model, precision, mask, compiled)
        for model in options.models
        for precision in options.precisions
        for compiled in ([False, True] if options.compile else [False])
        for mask in MASKS
    ]
    competitors = [Competitor(run.name, run, run.clips, clock=lambda call: call()) for run in runs]
    timings = race(competitors, options.repeats, bench.say, warmups=0)
    rows = []
    for run in runs:
        tube = TrainRun(bench, run.model, run.precision, "tube", run.compiled)
        figures = {"rate": timings[run.name].rate("clips/s"), "waits for data": Figure.of(run.waits, "%")}
        if run.mask != tube.mask:
            figures["x tube"] = timings[run.name].faster_than(timings[tube.name])
        rows.append(Row(run.name, figures))
    title = (
        f"shapes {grid.frames} x {grid.height} x {grid.width}, mask {options.mask_ratio:g}, batch {bench.batch_size}, "
        f"{READINGS * runs[0].log_every} steps a run"
    )
    return [Table("train", title, rows, NOTES)]


NOTES = ("x tube: clips a second of those with tube masks, which need no flow",)
