"""Labels that agree between splits, groups that don't straddle them, and the split inside the training set."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mgmae_cli.downstream.data import check_splits, groups_of, inner_split, labelled
from mgmae_cli.errors import DataError
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, DataLocation, PluginOptions


class NamedSource(ClipSource):
    """Videos that have names, classes and groups, and no frames."""

    name = "named"

    def __init__(
        self,
        labels: Sequence[str | None],
        classes: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        prefix: str = "video",
    ) -> None:
        super().__init__(PluginOptions(), DataLocation())
        self.labels, self.groups, self.prefix = labels, groups, prefix
        self.names = list(classes) if classes is not None else sorted({label for label in labels if label is not None})

    def __len__(self) -> int:
        return len(self.labels)

    def clip_name(self, index: int) -> str:
        return f"{self.prefix}{index}"

    def load(self, index: int, request: ClipRequest) -> Clip:
        raise NotImplementedError

    @property
    def classes(self) -> list[str] | None:
        return self.names or None

    def label(self, index: int) -> int | None:
        label = self.labels[index]
        return None if label is None else self.names.index(label)

    def group(self, index: int) -> str | None:
        return None if self.groups is None else self.groups[index]


def test_labels_of_a_second_source_get_the_numbers_of_the_first() -> None:
    train = labelled(NamedSource("abca"))
    assert train.labels == [0, 1, 2, 0]
    assert labelled(NamedSource("ccb"), train.classes).labels == [2, 2, 1]  # by itself it would be 1, 1, 0


def test_numbers_mean_named_classes_by_their_number() -> None:
    assert labelled(NamedSource(["2", "0"]), ["run", "walk", "jump"]).labels == [2, 0]
    with pytest.raises(DataError, match=r"class '3' is not among the 3 classes"):
        labelled(NamedSource(["3"]), ["run", "walk", "jump"])


def test_an_unknown_class_is_named_with_its_video_and_the_nearest() -> None:
    with pytest.raises(DataError, match=r"video1.*'wave left' is not among.*did you mean 'wave_left'"):
        labelled(NamedSource(["stop", "wave left"]), ["stop", "wave_left"], "testing")


def test_missing_labels_are_named() -> None:
    with pytest.raises(DataError, match=r"video1: has no label, and training needs one"):
        labelled(NamedSource(["a", None]))
    with pytest.raises(DataError, match=r"named: its videos have no labels"):
        labelled(NamedSource([None, None]))


def test_a_class_that_is_only_tested_is_refused_and_one_that_is_only_trained_is_remarked() -> None:
    classes = ["a", "b", "c"]
    train = labelled(NamedSource("aab", classes))
    assert check_splits(train, labelled(NamedSource("ab", classes, prefix="other"))) == [
        "1 of 3 classes have no training video: c",
        "1 of 3 classes have no test video: c",
    ]
    with pytest.raises(DataError, match=r"other0: class 'c' has 2 videos to test and none to train on"):
        check_splits(train, labelled(NamedSource("cca", classes, prefix="other")))


def test_a_video_in_both_splits_is_refused() -> None:
    train, val = labelled(NamedSource("ab")), labelled(NamedSource("a"))
    with pytest.raises(DataError, match=r"video0: is in both splits"):
        check_splits(train, val)


def test_a_group_in_both_splits_is_refused_with_a_video_of_each() -> None:
    train = labelled(NamedSource("aab", groups="112"))
    check_splits(train, labelled(NamedSource("ab", groups="33", prefix="other")))
    check_splits(train, labelled(NamedSource("ab", prefix="other")))  # one side knows no groups
    with pytest.raises(DataError, match=r"group '2' is in both splits.*video2 and other1"):
        check_splits(train, labelled(NamedSource("ab", groups="32", prefix="other")))


def test_groups_are_known_only_if_every_video_has_one() -> None:
    assert groups_of(NamedSource("ab", groups="xy")) == ["x", "y"]
    assert groups_of(NamedSource("ab")) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_inner_split_holds_out_a_share_of_every_class(seed: int) -> None:
    labels = [number % 3 for number in range(30)]
    fitted, judged = inner_split(labels, None, 0.2, torch.Generator().manual_seed(seed))
    assert sorted(fitted + judged) == list(range(30))
    assert sorted(labels[place] for place in judged) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_the_inner_split_holds_out_whole_groups(seed: int) -> None:
    labels = [number % 2 for number in range(24)]
    groups = [str(number // 4) for number in range(24)]
    fitted, judged = inner_split(labels, groups, 0.3, torch.Generator().manual_seed(seed))
    assert sorted(fitted + judged) == list(range(24))
    assert not {groups[place] for place in fitted} & {groups[place] for place in judged}
    assert len(judged) == 8


def test_classes_of_a_single_video_are_fitted_and_not_judged() -> None:
    fitted, judged = inner_split([0, 0, 0, 0, 1], None, 0.25, torch.Generator().manual_seed(0))
    assert 4 in fitted
    assert len(judged) == 1
    fitted, judged = inner_split([0, 0, 1], ["x", "y", "y"], 0.5, torch.Generator().manual_seed(1))
    assert all(label in {[0, 0, 1][place] for place in fitted} for label in [[0, 0, 1][place] for place in judged])


@pytest.mark.parametrize(("labels", "groups"), [([0, 1, 2], None), ([0, 0, 1], ["x", "x", "x"])])
def test_a_training_set_that_can_not_be_split_is_told(labels: list[int], groups: list[str] | None) -> None:
    with pytest.raises(DataError, match=r"can't be split to choose.*probe\.lr"):
        inner_split(labels, groups, 0.25, torch.Generator().manual_seed(0))
