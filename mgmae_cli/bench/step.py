"""The part `step`: forward and backward pass, ours against transformers', and the memory they take.

Clips and masks are on the device before the clock starts. For transformers' model so are normalised floats: turning
clips into them, which our step does itself, costs it nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mgmae_cli.bench.compute import matrix_product, step_operations
from mgmae_cli.bench.hf import hf_pixels, hf_twin
from mgmae_cli.bench.measure import Competitor, Figure, Timings, clock_of, race
from mgmae_cli.bench.memory import peak_memory
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.results import Row, Table
from mgmae_cli.engine.distributed import Place, Precision
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.grid import ClipGrid
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.random import RandomMask
from mgmae_cli.model.videomae import build_videomae, preset
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.loader import Batch

MEMORY_REPEATS = 3  # fresh processes are slow to start, and their memory hardly varies


@dataclass(frozen=True)
class StepSpec:
    """A step to measure, in plain values, so that a fresh process can do it too.

    Args:
        model: preset.
        precision: fp32 or bf16.
        grid, ratio, batch_size: of the clips.
        device: where.
        peer: transformers' model instead of ours.
        half: decode half of the tokens (VideoMAE V2's running cell).
        checkpointing: recompute activations.
        compiled: by torch.compile.
    """

    model: str
    precision: Precision
    grid: ClipGrid
    ratio: float
    batch_size: int
    device: str
    peer: bool = False
    half: bool = False
    checkpointing: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        extras = {"half decoded": self.half, "checkpointing": self.checkpointing, "compiled": self.compiled}
        told = " ".join([self.model, self.precision, "hf" if self.peer else "mgmae"])
        return ", ".join([told, *(extra for extra, there in extras.items() if there)])

    @property
    def place(self) -> Place:
        return Place(torch.device(self.device), self.precision)

    @property
    def operations(self) -> int:
        """The matrix operations of one clip."""
        visible = self.grid.visible_tokens(self.ratio)
        decoded = self.grid.tokens // 2 if self.half else self.grid.tokens - visible
        return step_operations(preset(self.model), self.grid, visible, decoded, everything=self.peer)


def step_specs(bench: Bench) -> list[StepSpec]:
    """Return the steps that the options ask for."""
    options, grid = bench.options, bench.options.grid
    specs = []
    for plain in plain_specs(bench):
        variants = {
            plain: True,
            replace(plain, half=True): grid.rows % 2 == 0 and grid.cols % 2 == 0,
            replace(plain, checkpointing=True): options.checkpointing,
            replace(plain, compiled=True): options.compile,
            replace(plain, peer=True): "hf" in options.against,
        }
        specs += [spec for spec, wanted in variants.items() if wanted]
    return specs


def plain_specs(bench: Bench) -> list[StepSpec]:
    """Return our own step for each model and precision, all masked tokens decoded."""
    options = bench.options
    return [
        StepSpec(model, precision, options.grid, options.mask_ratio, bench.batch_size, str(bench.device))
        for model in options.models
        for precision in options.precisions
    ]


def example_batch(spec: StepSpec) -> Batch:
    """Return clips of noise with random masks on the spec's device, the same for all of its variants."""
    generator = derive_generator(0)
    shape = (spec.batch_size, 3, spec.grid.frames, spec.grid.height, spec.grid.width)
    clips = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    masks = _masker(spec)(clips, generator)
    labels = torch.full((spec.batch_size,), -1)
    return Batch(clips, ["noise"] * spec.batch_size, labels, masks).to(spec.place.device)


def make_model(spec: StepSpec) -> nn.Module:
    """Return the model of a spec on its device; ours and the peer's have the same weights."""
    ours = build_videomae(spec.model, spec.grid, seed=0, checkpointing=spec.checkpointing)
    model = (hf_twin(ours) if spec.peer else ours).to(spec.place.device).train()
    if spec.compiled:
        model.compile()
    return model


def make_step(spec: StepSpec, model: nn.Module) -> Callable[[int], Tensor]:
    """Return a function that does one forward and backward pass of a model from `make_model`, and returns the loss.

    It takes the number of the round, and does the same in each.
    """
    batch = example_batch(spec)
    loss_of = _hf_loss(model, batch) if spec.peer else _own_loss(spec, model, batch)

    def step(_: int) -> Tensor:
        with spec.place.autocast():
            loss = loss_of()
        torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def step_competitors(specs: Sequence[StepSpec]) -> list[Competitor]:
    """Return steps ready to run; those that differ in precision or in what is decoded share a model."""
    models: dict[StepSpec, nn.Module] = {}
    competitors = []
    for spec in specs:
        shared = replace(spec, precision="fp32", half=False)
        if shared not in models:
            models[shared] = make_model(spec)
        step = make_step(spec, models[shared])
        competitors.append(Competitor(spec.name, step, spec.batch_size, clock_of(spec.place.device)))
    return competitors


def run_step(bench: Bench) -> list[Table]:
    """Measure steps in turns with the machine's matrix rate; then their memory, in fresh processes."""
    specs = step_specs(bench)
    products = [matrix_product(place) for place in bench.places()]
    timings = race([*products, *step_competitors(specs)], bench.options.repeats, bench.say)
    on_gpu = bench.device.type == "cuda"
    # torch.compile's own processes and code would be counted on a CPU
    weighed = [spec for spec in specs if on_gpu or not spec.compiled]
    # what torch allocates on a GPU is the same each time
    repeats = 1 if on_gpu else min(bench.options.repeats, MEMORY_REPEATS)
    memory = peak_memory(weighed, repeats, bench.say)
    unit, scale = ("TFLOP/s", 1e-12) if on_gpu else ("GFLOP/s", 1e-9)
    rows = [Row(product.name, {"rate": timings[product.name].rate(unit, scale)}) for product in products]
    rows += [Row(spec.name, _figures(spec, timings, memory)) for spec in specs]
    grid = bench.options.grid
    title = (
        f"forward and backward pass, {grid.frames} x {grid.height} x {grid.width}, mask {bench.options.mask_ratio:g}, "
        f"batch {bench.batch_size}"
    )
    return [Table("step", title, rows, NOTES)]


NOTES = (
    "of the matrix rate: the step's own matrix operations per second, of those of the matrix product in the same round",
    "x hf: transformers' time for the same clips in the same precision, divided by this time, round by round",
    "memory: the most that a step with its model takes; on a CPU of a fresh process",
)


def _figures(spec: StepSpec, timings: Mapping[str, Timings], memory: Mapping[str, Figure]) -> dict[str, Figure]:
    own, product = timings[spec.name], timings[f"matrix product {spec.precision}"]
    per_operation = replace(own, work=own.work * spec.operations)
    peer = timings.get(replace(spec, peer=True, half=False, checkpointing=False, compiled=False).name)
    figures = {
        "a clip": own.each("s" if spec.place.device.type == "cpu" else "ms"),
        "of the matrix rate": product.share_of(per_operation),
        "operations a clip": Figure.of([spec.operations / 1e9], "GFLOP"),
    }
    if peer is not None and not spec.peer:
        figures["x hf"] = own.faster_than(peer)
    if spec.name in memory:
        figures["memory"] = memory[spec.name]
    if spec.compiled:
        figures["first step"] = Figure.of([own.first], "s")
    return figures


def _masker(spec: StepSpec) -> Masker:
    return Masker(RandomMask(RandomMask.Options()), None, spec.grid, spec.ratio)


def _own_loss(spec: StepSpec, model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    task = PretrainTask(model, _masker(spec), running_cell=spec.half)
    return lambda: task.loss(batch, (0,))


def _hf_loss(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    pixels = hf_pixels(batch.clips)

    def loss() -> Tensor:
        found: Tensor = model(pixels, bool_masked_pos=batch.masks).loss
        return found

    return loss
