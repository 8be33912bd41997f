"""From an ablation to its cells: every point of the grid with validated settings, and whether they may be compared."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mgmae_cli.ablation.recipe import Ablation, Recipe
from mgmae_cli.config import Layer
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.run import make_plan
from mgmae_cli.errors import ConfigError, did_you_mean
from mgmae_cli.registry import Registry, default_registry
from mgmae_cli.settings import Settings, resolve_layers

_WORDS = {"visible_tokens": "visible tokens", "steps": "steps", "clips_seen": "clips seen"}


@dataclass(frozen=True)
class Effort:
    """What a cell sees in training: only cells that are equal in it can be compared."""

    visible_tokens: int
    tokens: int
    steps: int
    clips_seen: int


@dataclass(frozen=True)
class Cell:
    """A point of the grid.

    Args:
        name: its labels, joined: unique, and fit for a folder.
        labels: axis -> label.
        settings: validated, of seed 0 and without a run folder.
        effort: what it sees.
        reference: name of the cell that it is compared with.
    """

    name: str
    labels: Mapping[str, str]
    settings: Settings
    effort: Effort
    reference: str

    def of_seed(self, seed: int) -> dict[str, Any]:
        """Return the settings of one run, as plain data."""
        tree = self.settings.config.model_dump(mode="json")
        return {**tree, "seed": seed}


def expand(ablation: Ablation, registry: Registry | None = None) -> list[Cell]:
    """Return the cells in the order of the recipe, the last axis changing fastest.

    Raises:
        ConfigError: settings of a cell are wrong, named with the cell; or cells may not be compared.
    """
    registry = registry or default_registry()
    recipe = ablation.recipe
    cells: list[Cell] = []
    problems: dict[str, str] = {}  # many cells may share one
    for point in itertools.product(*recipe.sweep.values()):
        labels = dict(zip(recipe.sweep, point))
        name = _cell_name(point)
        try:
            settings = resolve_layers(_layers(ablation, labels), registry)
            cells.append(Cell(name, labels, settings, effort_of(settings), _reference(recipe, labels)))
        except ConfigError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, f"cell {name!r}: {line}")
    if problems:
        raise ConfigError("\n".join(problems.values()))
    _refuse_equal_names(cells)
    check_comparable(cells, recipe.about)
    return cells


def _layers(ablation: Ablation, labels: Mapping[str, str]) -> list[Layer]:
    swept = [
        Layer(f"sweep: {axis} = {label}", ablation.recipe.sweep[axis][label])
        for axis, label in labels.items()
        if ablation.recipe.sweep[axis][label]
    ]
    extra = [layer for label in labels.values() for layer in ablation.extra.get(label, [])]
    return [*ablation.base, *swept, *extra]


def _cell_name(point: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", "_".join(point)).strip("-") or "cell"


def _reference(recipe: Recipe, labels: Mapping[str, str]) -> str:
    """Return the cell to compare with: the first of all, or that with the first label of the axis `compare`."""
    firsts = {axis: next(iter(labels_of)) for axis, labels_of in recipe.sweep.items()}
    if recipe.compare is not None:
        firsts = {**labels, recipe.compare: firsts[recipe.compare]}
    return _cell_name([firsts[axis] for axis in recipe.sweep])


def _refuse_equal_names(cells: Sequence[Cell]) -> None:
    names = [cell.name for cell in cells]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"sweep: two cells are called {double!r}; name them by groups: {{AXIS: {{NAME: {{...}}}}}}")


def effort_of(settings: Settings) -> Effort:
    """Return what a run sees; opens the source where its length is in epochs.

    Raises:
        DataError: the source is missing or empty.
    """
    config, train = settings.config, settings.config.train
    videos = len(settings.make_source()) if train.steps is None else 1
    plan = make_plan(
        train.batch_size,
        train.accumulate,
        config.data.samples_per_video,
        train.steps,
        train.epochs,
        videos,
        Place(torch.device("cpu"), "fp32"),
        config.run,
    )
    visible = settings.make_masker().visible_tokens
    return Effort(visible, settings.grid.tokens, plan.steps, plan.steps * plan.clips_per_step)


def check_comparable(cells: Sequence[Cell], about: Sequence[str] = ()) -> None:
    """Refuse cells that differ in what training sees, unless the sweep is about it.

    A cell of no steps (`train.steps: 0`) is what all others begin with, and may stand beside any.

    Raises:
        ConfigError: naming two cells, and in what they differ.
    """
    cells = [cell for cell in cells if cell.effort.steps] or list(cells)
    first, problems = cells[0], []
    for key, words in _WORDS.items():
        if key in about:
            continue
        for cell in cells:
            mine, theirs = getattr(first.effort, key), getattr(cell.effort, key)
            if mine != theirs:
                of = "".join(f" of {c.effort.tokens}" for c in (first,)) if key == "visible_tokens" else ""
                problems.append(
                    f"cells {first.name!r} and {cell.name!r} can't be compared: {mine} and {theirs} {words}{of}; "
                    f"make them equal, or write about: [{key}] where the sweep is about it"
                )
                break
    if problems:
        raise ConfigError("\n".join(problems))


def choose(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells that have one of the words as their name or as a label; all of them without words.

    Raises:
        ConfigError: a word that is neither.
    """
    if not only:
        return list(cells)
    known = {cell.name for cell in cells} | {label for cell in cells for label in cell.labels.values()}
    for word in only:
        if word not in known:
            names = ", ".join(cell.name for cell in cells)
            raise ConfigError(f"--only {word}: no such cell{did_you_mean(word, known)}; cells: {names}")
    return [cell for cell in cells if cell.name in only or set(cell.labels.values()) & set(only)]
