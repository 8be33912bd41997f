"""RunConfig: every setting of a run, as a tree of frozen pydantic models; load, merge, validate, dump.

Layers: defaults < what the clip source recommends < recipe < flags < `--set a.b=value`. The resolved tree is saved as
`config.yaml` in the run folder and is itself a valid recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mgmae_cli.errors import ConfigError
from mgmae_cli.explain import explain, is_section, origin_of, place
from mgmae_cli.yaml_files import dump_yaml, parse_yaml, read_yaml


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys, infinities and nan are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


ModelName = Literal["tiny", "small", "base", "large", "huge"]
Pixels = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class MaskConfig(Section):
    name: str = Field("motion", description="masking strategy; `mgmae plugins` lists them")
    ratio: float = Field(0.9, gt=0, lt=1, description="share of masked tokens")
    options: dict[str, Any] = Field(default_factory=dict, description="the strategy's own options")


class FlowConfig(Section):
    name: str = Field("dis", description="flow estimator, for strategies that use flow")
    options: dict[str, Any] = Field(default_factory=dict, description="the estimator's own options")


class ReadConfig(Section):
    """Which videos, and which frames of them: what training, testing and feature extraction share."""

    source: str = Field("auto", description="clip source; auto: `shapes` without a path, else what the path is")
    path: Path | None = Field(None, description="a video, a folder of videos, or a list file")
    root: Path | None = Field(None, description="folder that a list's relative paths start from; default: the list's")
    frames: int = Field(16, ge=2, description="frames of a clip")
    size: Pixels | tuple[Pixels, Pixels] = Field(224, description="pixels after cropping: one side, or [height, width]")
    stride: int = Field(4, ge=1, description="source frames from one clip frame to the next")
    sampling: Literal["stride", "segments"] = Field("stride", description="dense window, or one frame a segment (TSN)")
    min_frames: int = Field(2, ge=1, description="videos with fewer frames are skipped as unreadable")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="loader processes; auto: from the machine's cores"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the source's own options")

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]


class DataConfig(ReadConfig):
    crop: Literal["multi_scale", "random_resized", "center", "none"] = "multi_scale"
    flip: float = Field(0.0, ge=0, le=1, description="chance of a horizontal flip; 0 where labels know left from right")
    samples_per_video: int = Field(
        1, ge=1, description="crops and masks drawn from each decoded video (repeated sampling)"
    )
    max_bad_share: float = Field(0.2, ge=0, le=1, description="stop when more than this share of videos is unreadable")


class ModelConfig(Section):
    name: ModelName = Field("small", description="encoder preset")
    init: Path | None = Field(None, description="weights to start from, in any known format; null: random ones")
    allow_partial: bool = Field(False, description="start from what fits where keys of init are missing or don't fit")
    tubelet: int = Field(2, ge=1, description="frames per token")
    patch: int = Field(16, ge=1, description="pixels per token side")
    decoder_depth: int = Field(4, ge=1, description="decoder blocks")
    decoder_mask: Literal["none", "running_cell"] = Field("none", description="decode all masked tokens, or V2's half")
    checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")


class TrainConfig(Section):
    steps: int | None = Field(None, ge=0, description="optimiser steps, instead of epochs; 0: stay untrained")
    epochs: float | None = Field(None, gt=0, description="passes over the videos; instead of steps")
    batch_size: int = Field(32, ge=1, description="clips per forward pass and device, repeated samples counted")
    accumulate: int = Field(1, ge=1, description="forward passes per optimiser step")
    base_lr: float = Field(1.5e-4, gt=0, description="learning rate per 256 clips a step")
    min_base_lr: float = Field(1e-5, ge=0, description="where the cosine ends, per 256 clips a step")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm")

    @model_validator(mode="after")
    def _no_contradictions(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; keep one")
        if self.min_base_lr > self.base_lr:
            raise ValueError(
                f"min_base_lr = {self.min_base_lr:g} is above base_lr = {self.base_lr:g}, so that the rate would rise; "
                "lower train.min_base_lr too"
            )
        return self


class PlaceSection(Section):
    """Where things run and what they leave."""

    out: Path | None = Field(None, description="folder of what is written; default: a new one under runs/")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs, fp32 on the CPU")


class RunSection(PlaceSection):
    compile: bool = Field(False, description="torch.compile the model")
    log_every: int = Field(10, ge=1, description="steps between lines in metrics.jsonl; the loss is read only then")
    save_every: int = Field(0, ge=0, description="steps between kept checkpoints; 0: only the last ones")
    checkpoint_minutes: float = Field(10.0, gt=0, description="minutes between resume checkpoints")
    keep_last: int = Field(2, ge=1, description="resume checkpoints kept")
    pictures: bool = Field(True, description="draw the loss curve and reconstructions at the end")


Share = Annotated[float, Field(ge=0, le=1)]


class HealthConfig(Section):
    """When a pre-training run warns that something looks wrong; null turns that warning off.

    `mgmae_cli.diagnose.health` says how each figure is measured.
    """

    every: int = Field(100, ge=1, description="steps from one look at flow and masks to the next")
    clips: int = Field(4, ge=1, description="clips of a batch that such a look judges")
    look_time: Share = Field(0.01, description="share of the time that looks may take; the first look is free")
    min_mask_ratio: Share | None = Field(0.75, description="share of masked tokens")
    max_slot_spread: float | None = Field(
        0.75, ge=0, description="deviation of the number of visible tokens between slots, as a share of its mean"
    )
    min_life: Share | None = Field(
        0.2, description="time that visible content stays visible, as a share of the time that it can be followed"
    )
    max_leak: Share | None = Field(0.4, description="share of masked tokens whose content another slot shows")
    max_flow_error: float | None = Field(
        0.9, ge=0, description="colour difference along the flow, as a share of that without any motion"
    )
    max_flow_lost: Share | None = Field(
        0.6, description="share of places where forward and backward flow disagree, or leave the frame"
    )
    max_data_wait: Share | None = Field(0.3, description="share of the time spent waiting for clips and their masks")
    max_mask_time: Share | None = Field(
        0.5, description="share of the time spent on masks and flow, where the training device draws them"
    )
    max_loss_rise: float | None = Field(0.1, ge=0, description="rise of the loss above its lowest, as a share of that")
    max_loss: float | None = Field(
        0.98, gt=0, description="loss in the second half, as a share of that of guessing each token's mean colour"
    )


class RunConfig(Section):
    """All settings of a pre-training run."""

    seed: int = Field(0, ge=0, lt=2**32, description="seeds weights, data order, crops and masks")
    mask: MaskConfig = MaskConfig()
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    run: RunSection = RunSection()
    health: HealthConfig = HealthConfig()


Config = TypeVar("Config", bound=BaseModel)

# --- layers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One source of settings: `values` maps dotted keys to values; `origin` says where an error should point."""

    origin: str
    values: Mapping[str, Any]
    origins: Mapping[str, str] | None = None  # per key, where one layer has several (flags)

    def origin_of(self, key: str) -> str:
        return (self.origins or {}).get(key, self.origin)


# A new choice on a higher layer drops what lower layers said about the old one.
_NAMED = {"mask.name": "mask.options", "flow.name": "flow.options", "data.source": "data.options"}
# Options of clip sources that change how fast clips come, never which: they tell no two runs or sets of videos apart.
SPEED_OPTIONS = ("cache", "cache_gb")
_EXCLUSIVE = {"train.steps": "train.epochs", "train.epochs": "train.steps"}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping. Empty mappings yield nothing; lists are values."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge layers, later over earlier; return the dotted values and where each came from."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def drop(match: str) -> None:
        for key in [key for key in values if key == match or key.startswith(f"{match}.")]:
            del values[key], origins[key]

    for layer in layers:
        for key, options in _NAMED.items():
            if key in layer.values and key in values and layer.values[key] != values[key]:
                drop(options)
        for key, other in _EXCLUSIVE.items():
            if layer.values.get(key) is not None and layer.values.get(other) is None:
                drop(other)
        for key, value in layer.values.items():
            values[key] = value
            origins[key] = layer.origin_of(key)
    return values, origins


def recipe_layer(path: Path) -> Layer:
    """Read a recipe.

    Raises:
        ConfigError: no such file, or not a mapping of settings.
    """
    return Layer(str(path), dict(flatten(read_yaml(path))))


def set_layer(assignments: Sequence[str]) -> Layer:
    """Parse `--set a.b=value` arguments; values are read as YAML.

    Raises:
        ConfigError: an argument without '='.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: expected KEY=VALUE, as in --set train.base_lr=3e-4")
        parsed = parse_yaml(value, f"--set {key}")
        values.update(flatten({key.strip(): parsed}))
    return Layer("--set", values, {key: f"--set {key}" for key in values})


def nest(values: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return dotted values as a tree, and a line for each key that is a value in one place and a section in another."""
    tree: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node: Any = tree
        for depth, parent in enumerate(parents, start=1):
            if node.get(parent) is None:  # also `data:` with nothing below it
                node[parent] = {}
            inner = node[parent]
            if not isinstance(inner, dict):
                whole = ".".join(parents[:depth])
                problems.append(
                    f"{place(origins, key)}can't be set inside {whole} = {inner!r} ({origin_of(origins, whole)})"
                )
                break
            node = inner
        else:
            if isinstance(node.get(leaf), dict):
                if value is None:
                    continue
                problems.append(f"{place(origins, key)}is a section, not a value ({value!r}); use {key}.NAME")
            else:
                node[leaf] = value
    return tree, problems


def build(values: Mapping[str, Any], origins: Mapping[str, str], model: type[Config]) -> Config:
    """Validate dotted values into a config.

    Raises:
        ConfigError: naming every problem with its origin, key and, for unknown keys, the nearest known one.
    """
    empty = {key for key in _section_keys(model) if values.get(key, key) is None}  # `data:` with nothing below it
    tree, problems = nest({key: value for key, value in values.items() if key not in empty}, origins)
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        problems.extend(explain(error, model, origins))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _section_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys that hold further keys: sections and plugin options."""
    for name, info in model.model_fields.items():
        if is_section(info.annotation):
            yield prefix + name
            yield from _section_keys(info.annotation, f"{prefix}{name}.")
        elif info.annotation == dict[str, Any]:
            yield prefix + name


def dump(config: BaseModel, header: str = "") -> str:
    """Return a config as YAML that loads back to an equal config; `header` becomes comment lines."""
    return "".join(f"# {line}\n" for line in header.splitlines()) + dump_yaml(config.model_dump(mode="json"))
