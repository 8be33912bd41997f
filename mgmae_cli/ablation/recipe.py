"""An ablation's recipe: a base run, what is swept, seeds, what is measured, and budgets from minutes to the published.

    question: Where should the mask be drawn?
    base: {mask: {name: motion}}                      settings of every cell, as in a pre-training recipe
    sweep: {mask.options.base_frame: [first, middle, random]}
    seeds: 3
    evaluate: [loss, leakage, linear]
    budgets: {cpu: {base: {train: {steps: 100}}}, ...}

An axis of `sweep` is a dotted key with a list of values, or a word with named groups of settings; several axes are
crossed. A cell is one point of that grid, a run is a cell with a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from mgmae_cli.config import Layer, Section, flatten, set_layer
from mgmae_cli.errors import ConfigError, did_you_mean
from mgmae_cli.explain import explain
from mgmae_cli.yaml_files import read_yaml

EVALUATIONS = ("loss", "leakage", "reconstruction", "linear", "knn", "attentive", "finetune")
Evaluations = dict[str, dict[str, Any]]
Seeds = tuple[Annotated[int, Field(ge=0, lt=2**32)], ...]
Axis = dict[str, dict[str, Any]]  # label -> settings


def _read_seeds(value: Any) -> Any:
    """Take a number of seeds for the seeds from 0."""
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(value))
    return value


def _read_evaluations(value: Any) -> Any:
    """Take a list of names for evaluations without settings, and flatten the settings of others."""
    if isinstance(value, list):
        value = dict.fromkeys(value)
    if not isinstance(value, dict):
        return value
    for name in value:
        if name not in EVALUATIONS:
            raise ValueError(f"unknown {name!r}{did_you_mean(str(name), EVALUATIONS)}; use {', '.join(EVALUATIONS)}")
    return {name: dict(flatten(settings)) if settings else {} for name, settings in value.items()}


class Budget(Section):
    """One size of an ablation: what it adds to the recipe, and what it replaces."""

    about: str = Field("", description="hardware, time, and whether it was measured")
    base: dict[str, Any] = Field(default_factory=dict, description="settings over those of the recipe's base")
    cells: Axis = Field(default_factory=dict, description="label -> settings over those of the sweep")
    seeds: Seeds | None = Field(None, min_length=1, description="instead of the recipe's")
    evaluate: Evaluations | None = Field(None, description="instead of the recipe's")

    _seeds = field_validator("seeds", mode="before")(_read_seeds)
    _evaluate = field_validator("evaluate", mode="before")(_read_evaluations)

    @field_validator("cells")
    @classmethod
    def _flatten_cells(cls, value: Axis) -> Axis:
        return {label: dict(flatten(settings)) for label, settings in value.items()}


class Recipe(Section):
    """What the file of an ablation holds."""

    question: str = Field(description="what it asks, in a sentence")
    paper: str = Field("", description="what the paper found")
    base: dict[str, Any] = Field(default_factory=dict, description="settings of every cell")
    sweep: dict[str, Axis] = Field(min_length=1, description="axes: a dotted key with values, or a word with groups")
    compare: str | None = Field(
        None, description="axis along which cells are compared with its first; default: all with the first cell"
    )
    about: tuple[Literal["visible_tokens", "steps", "clips_seen"], ...] = Field(
        (), description="in which the cells may differ, since the sweep is about it"
    )
    seeds: Seeds = Field((0, 1, 2), min_length=1, description="seeds, or how many")
    evaluate: Evaluations = Field(default_factory=lambda: dict[str, dict[str, Any]](loss={}, leakage={}))
    budgets: dict[Literal["cpu", "gpu", "paper"], Budget] = Field(default_factory=dict)
    keep_checkpoints: bool = Field(False, description="keep every run's checkpoints; else only figures and curves stay")

    _seeds = field_validator("seeds", mode="before")(_read_seeds)
    _evaluate = field_validator("evaluate", mode="before")(_read_evaluations)

    @property
    def labels(self) -> set[str]:
        """The labels of all axes."""
        return {label for axis in self.sweep.values() for label in axis}

    @field_validator("sweep", mode="before")
    @classmethod
    def _read_sweep(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {str(axis): _read_axis(str(axis), given) for axis, given in value.items()}


def _read_axis(axis: str, given: Any) -> Axis:
    """Return an axis as label -> settings."""
    if isinstance(given, list):
        return {label_of(value): {axis: value} for value in given}
    if not isinstance(given, dict):
        raise ValueError(f"{axis} = {given!r}: expected a list of values, or named groups of settings")
    axes: Axis = {}
    for label, settings in given.items():
        if settings is not None and not isinstance(settings, dict):
            raise ValueError(f"{axis}.{label} = {settings!r}: expected settings, as in {{mask.name: tube}}")
        axes[label_of(label)] = dict(flatten(settings or {}))
    if not axes:
        raise ValueError(f"{axis}: no cells")
    return axes


def label_of(value: Any) -> str:
    """Return how a swept value is called in tables and folders."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Ablation:
    """A recipe at one budget, with the user's own settings.

    Args:
        name: of the recipe's file.
        recipe: as read.
        budget: chosen one; None where the recipe has none.
        base: layers of settings of every cell, the lowest first.
        extra: label -> layers of the cells that have it: the budget's, then those of `--set LABEL:KEY=VALUE`.
        seeds, evaluate: those in force.
        text: of the file, for the report.
    """

    name: str
    recipe: Recipe
    budget: str | None
    base: list[Layer]
    extra: Mapping[str, Sequence[Layer]]
    seeds: tuple[int, ...]
    evaluate: Evaluations
    text: str


def load_ablation(
    path: Path, budget: str | None = None, assignments: Sequence[str] = (), seeds: int | None = None
) -> Ablation:
    """Read a recipe and choose a budget.

    Args:
        budget: None chooses `cpu`, or the recipe's first.
        assignments: `--set KEY=VALUE` for all cells, `--set LABEL:KEY=VALUE` for those with a label.
        seeds: how many instead of the recipe's.

    Raises:
        ConfigError: every problem of the file, or a budget or label that it does not have.
    """
    recipe = read_recipe(path)
    chosen = _choose_budget(path, recipe, budget)
    preset = recipe.budgets[chosen] if chosen else Budget()  # type: ignore[index]
    common, by_label = _split_assignments(recipe, assignments)
    extra = {label: [Layer(f"{path}: budgets.{chosen}.cells.{label}", given)] for label, given in preset.cells.items()}
    for label, layer in by_label.items():
        extra.setdefault(label, []).append(layer)
    base = [Layer(f"{path}: base", dict(flatten(recipe.base)))]
    if chosen:
        base.append(Layer(f"{path}: budgets.{chosen}.base", dict(flatten(preset.base))))
    if common:
        layer = set_layer(common)
        _refuse_swept(recipe, layer)
        base.append(layer)
    return Ablation(
        name=path.stem,
        recipe=recipe,
        budget=chosen,
        base=base,
        extra=extra,
        seeds=tuple(range(seeds)) if seeds else preset.seeds or recipe.seeds,
        evaluate=preset.evaluate if preset.evaluate is not None else recipe.evaluate,
        text=path.read_text(encoding="utf-8"),
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's file.

    Raises:
        ConfigError: missing, or with problems; all of them, with file and key.
    """
    tree = read_yaml(path)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        origins = {str(key): str(path) for key in [*tree, *Recipe.model_fields]}
        raise ConfigError("\n".join(explain(error, Recipe, origins))) from None
    if recipe.compare is not None and recipe.compare not in recipe.sweep:
        known = ", ".join(recipe.sweep)
        raise ConfigError(f"{path}: compare: {recipe.compare!r} is no axis of the sweep; use one of {known}")
    labels = recipe.labels
    for budget, preset in recipe.budgets.items():
        for label in preset.cells:
            if label not in labels:
                hint = did_you_mean(label, labels)
                raise ConfigError(f"{path}: budgets.{budget}.cells.{label}: no cell has that label{hint}")
    return recipe


def _choose_budget(path: Path, recipe: Recipe, budget: str | None) -> str | None:
    if budget is None:
        return "cpu" if "cpu" in recipe.budgets else next(iter(recipe.budgets), None)
    if budget not in recipe.budgets:
        known = ", ".join(recipe.budgets) or "none"
        hint = did_you_mean(budget, recipe.budgets)
        raise ConfigError(f"--budget {budget}: {path} has no such budget{hint}; it has {known}")
    return budget


def _split_assignments(recipe: Recipe, assignments: Sequence[str]) -> tuple[list[str], dict[str, Layer]]:
    """Tell assignments for all cells from those for cells with a label."""
    labels = recipe.labels
    common: list[str] = []
    by_label: dict[str, list[str]] = {}
    for text in assignments:
        label, colon, assignment = text.partition(":")
        if not colon or "=" in label:
            common.append(text)
        elif label in labels:
            by_label.setdefault(label, []).append(assignment)
        else:
            known = ", ".join(sorted(labels))
            raise ConfigError(f"--set {text}: no cell has {label!r}{did_you_mean(label, labels)}; known: {known}")
    return common, {label: set_layer(given) for label, given in by_label.items()}


def _refuse_swept(recipe: Recipe, layer: Layer) -> None:
    """Refuse a setting for all cells that an axis of the sweep sets in each of its cells: it would be lost."""
    for axis, labels in recipe.sweep.items():
        for key in layer.values:
            if all(key in settings for settings in labels.values()):
                label = next(iter(labels))
                raise ConfigError(
                    f"--set {key}: the sweep's axis {axis!r} varies it; drop it, or set it for one cell: "
                    f"--set {label}:{key}=VALUE"
                )
