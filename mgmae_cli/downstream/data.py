"""Labelled videos for training and testing: class numbers that agree between them, and groups that don't straddle them.

Sources number their classes each for itself, so labels of a second source are brought to the first one's numbers by the
classes' names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mgmae_cli.errors import DataError, did_you_mean
from mgmae_cli.interfaces import ClipSource

_LISTED = 5


@dataclass(frozen=True)
class Labelled:
    """A source whose every video has a class.

    Args:
        source: of the clips.
        labels: class number of each video.
        classes: names, by number.
    """

    source: ClipSource
    labels: list[int]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def whereabouts(source: ClipSource, index: int) -> str:
    """Return how a message names a video: its name, and the list's line where it comes from one."""
    name = source.clip_name(index)
    entry = getattr(source, "entry", None)
    line = entry(index).line if entry is not None else 0
    return f"{source.location.path}, line {line} ({name})" if line else name


def labelled(source: ClipSource, classes: Sequence[str] | None = None, purpose: str = "training") -> Labelled:
    """Return a source with a class number for every video.

    Args:
        classes: names that the numbers refer to, from training; None: the source's own.
        purpose: what the videos are for, in messages.

    Raises:
        DataError: a video without a class, or with one that is not among `classes`.
    """
    names = source.classes
    if names is None:
        raise DataError(
            f"{source.location.path or source.name}: its videos have no labels, and {purpose} needs one for each; "
            "use a list with a label in every line, or a folder with a subfolder for each class"
        )
    known = {name: number for number, name in enumerate(classes or names)}
    if all(name.isdigit() for name in names) and not any(name.isdigit() for name in known):
        known = {str(number): number for number in known.values()}  # a list of numbers for named classes
    labels = []
    for index in range(len(source)):
        label = source.label(index)
        if label is None:
            raise DataError(
                f"{whereabouts(source, index)}: has no label, and {purpose} needs one for every video; label it, take "
                "it out, or choose a split without it"
            )
        name = names[label]
        if name not in known:
            raise DataError(
                f"{whereabouts(source, index)}: class {name!r} is not among the {len(known)} classes of training"
                f"{did_you_mean(name, known)}: {_some(list(known))}"
            )
        labels.append(known[name])
    return Labelled(source, labels, list(classes or names))


def check_splits(train: Labelled, val: Labelled) -> list[str]:
    """Refuse splits that share videos or groups, or test classes that were never trained; return remarks.

    Raises:
        DataError: naming the video, the group with a video of each split, or the class.
    """
    _refuse_shared_videos(train.source, val.source)
    _refuse_shared_groups(train.source, val.source)
    trained, tested = Counter(train.labels), Counter(val.labels)
    for label in tested:
        if label not in trained:
            index = val.labels.index(label)
            raise DataError(
                f"{whereabouts(val.source, index)}: class {val.classes[label]!r} has {tested[label]} videos to test "
                "and none to train on"
            )
    remarks = []
    for used, what in ((trained, "training"), (tested, "test")):
        absent = [name for number, name in enumerate(train.classes) if number not in used]
        if absent:
            remarks.append(f"{len(absent)} of {len(train.classes)} classes have no {what} video: {_some(absent)}")
    return remarks


def groups_of(source: ClipSource) -> list[str] | None:
    """Return the group of each video, such as its recording session; None where the source knows none."""
    groups = [source.group(index) for index in range(len(source))]
    return None if None in groups else groups  # type: ignore[return-value]


def _refuse_shared_videos(train: ClipSource, val: ClipSource) -> None:
    if not (train.needs_path and val.needs_path):
        return
    trained = {video_key(train, index): index for index in range(len(train))}
    for index in range(len(val)):
        if video_key(val, index) in trained:
            first = whereabouts(train, trained[video_key(val, index)])
            raise DataError(
                f"{whereabouts(val, index)}: is in both splits (also {first}), so that the test would see what was "
                "trained on; name the split to train on, as in --set data.options.split=train"
            )


def video_key(source: ClipSource, index: int) -> tuple[object, ...]:
    """Return what tells a source's videos apart: the path, and which part of it a list means."""
    entry = getattr(source, "entry", None)
    part = (entry(index).start, entry(index).total) if entry is not None else ()
    return (str(Path(source.clip_name(index)).absolute()), *part)


def _refuse_shared_groups(train: ClipSource, val: ClipSource) -> None:
    train_groups, val_groups = groups_of(train), groups_of(val)
    if train_groups is None or val_groups is None:
        return
    shared = sorted(set(train_groups) & set(val_groups))
    if shared:
        first = shared[0]
        one, other = train_groups.index(first), val_groups.index(first)
        raise DataError(
            f"group {first!r} is in both splits, so that the test would see what was trained on: "
            f"{whereabouts(train, one)} and {whereabouts(val, other)}; {len(shared)} groups are shared: {_some(shared)}"
        )


def inner_split(
    labels: Sequence[int], groups: Sequence[str] | None, share: float, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Split a training set in two, to choose settings without looking at the test set.

    Args:
        labels: class of each video.
        groups: that must not straddle the two; None splits every class by itself.
        share: wanted in the second part.

    Returns:
        Positions to fit on, and positions to judge by; neither is empty, and every class judged is fitted.

    Raises:
        DataError: too few videos, or all in one group.
    """
    judged: set[int] = set()
    if groups is None:
        for members in _by_value(labels).values():
            order = torch.randperm(len(members), generator=generator).tolist()
            wanted = min(len(members) - 1, max(1, round(share * len(members))))
            judged |= {members[place] for place in order[:wanted]}
    else:
        by_group = list(_by_value(groups).values())
        for place in torch.randperm(len(by_group), generator=generator).tolist()[:-1]:
            if len(judged) < share * len(labels):
                judged |= set(by_group[place])
    fitted_classes = {label for position, label in enumerate(labels) if position not in judged}
    judged = {position for position in judged if labels[position] in fitted_classes}
    if not judged:
        raise DataError(
            f"the {len(labels)} training videos can't be split to choose the probe's settings on: "
            + ("each class needs two" if groups is None else "they need classes that occur in two groups")
            + "; or name one learning rate and weight decay: --set probe.lr=[0.1] --set probe.weight_decay=[0]"
        )
    return [position for position in range(len(labels)) if position not in judged], sorted(judged)


def _by_value(values: Sequence[object]) -> Mapping[object, list[int]]:
    places: dict[object, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return places


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
