"""Reading videos for a test: the places and crops, the order, and what becomes of unreadable videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mgmae_cli.downstream.views import ViewDataset, ViewSpec, clip_places, read_videos, read_views, run_views
from mgmae_cli.errors import PluginError, UnreadableClip
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, DataLocation, PluginOptions
from mgmae_cli.video.sampling import frame_indices


class CountingSource(ClipSource):
    """Videos of 41 frames, 8 x 20, whose pixels say video, frame and column."""

    name = "counting"

    def __len__(self) -> int:
        return 5

    def clip_name(self, index: int) -> str:
        return f"video {index}"

    def load(self, index: int, request: ClipRequest) -> Clip:
        if index == 3:
            raise UnreadableClip("video 3", "broken")
        frames = torch.zeros(request.frames, 3, 8, 20, dtype=torch.uint8)
        frames[:, 0] = index
        frames[:, 1] = torch.tensor(frame_indices(request, 41, ""))[:, None, None]
        frames[:, 2] = torch.arange(20)
        return Clip(frames, self.clip_name(index))


def source() -> CountingSource:
    return CountingSource(PluginOptions(), DataLocation())


def test_dense_clips_lie_evenly_over_the_video() -> None:
    views = read_views(source(), 0, ViewSpec(4, 3, 8, 8, clips=5))
    assert views.shape == (5, 3, 4, 8, 8)
    starts = [round(place * 31) for place in (0, 0.25, 0.5, 0.75, 1)]  # 41 frames - 10 of the window
    assert views[:, 1, :, 0, 0].tolist() == [[start, start + 3, start + 6, start + 9] for start in starts]


def test_one_clip_is_the_middle_one() -> None:
    views = read_views(source(), 0, ViewSpec(4, 3, 8, 8))
    assert views[0, 1, :, 0, 0].tolist() == [16, 19, 22, 25]  # the start at half of 41 - 10 = 31, rounded


def test_segments_take_the_parts_starts_and_middles_as_the_official_two_clips() -> None:
    assert clip_places(1, "segments") == [0.5]
    assert clip_places(2, "segments") == [0.0, 0.5]
    views = read_views(source(), 0, ViewSpec(4, 1, 8, 8, sampling="segments", clips=2))
    tick = 41 / 4
    starts, middles = ([int(tick * k + shift) for k in range(4)] for shift in (0, tick / 2))
    assert views[:, 1, :, 0, 0].tolist() == [starts, middles]


def test_three_crops_are_left_middle_and_right_and_change_fastest() -> None:
    views = read_views(source(), 0, ViewSpec(2, 1, 8, 8, clips=2, crops=3))
    assert views[:, 2, 0, 0, 0].tolist() == [0, 6, 12] * 2
    assert views[:3, 1, 0, 0, 0].unique().numel() == 1
    assert read_views(source(), 0, ViewSpec(2, 1, 8, 8))[0, 2, 0, 0, 0] == 6


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batches_of_any_size_give_each_video_its_own_outputs(batch_size: int) -> None:
    dataset = ViewDataset(source(), ViewSpec(2, 1, 8, 8, clips=2, crops=3))
    calls = []

    def outputs(clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return clips.float().mean((3, 4)).flatten(1)

    found = list(run_views(read_videos(dataset, range(5), 0, False), outputs, batch_size, torch.device("cpu")))
    assert [video.index for video, _ in found] == [0, 1, 2, 3, 4]
    for video, values in found:
        if video.index == 3:
            assert values is None
            assert video.reason == "broken"
        else:
            assert values is not None
            assert torch.equal(values, read_views(source(), video.index, dataset.spec).float().mean((3, 4)).flatten(1))
    assert max(calls) <= batch_size
    assert sum(calls) == 24


def test_loader_processes_change_nothing() -> None:
    dataset = ViewDataset(source(), ViewSpec(2, 1, 8, 8))
    for video, other in zip(read_videos(dataset, [4, 3, 0], 1, False), read_videos(dataset, [4, 3, 0], 0, False)):
        assert video.index == other.index
        assert video.clips is None if other.clips is None else torch.equal(video.clips, other.clips)


def test_reading_leaves_torchs_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    list(read_videos(ViewDataset(source(), ViewSpec(2, 1, 8, 8)), [0, 1], 0, False))
    assert torch.rand(()) == expected


def test_a_source_that_returns_the_wrong_thing_is_named(tmp_path: Path) -> None:
    class Wrong(CountingSource):
        def load(self, index: int, request: ClipRequest) -> Clip:
            return Clip(torch.zeros(1, 3, 8, 8), "wrong")

    dataset = ViewDataset(Wrong(PluginOptions(), DataLocation()), ViewSpec(2, 1, 8, 8))
    with pytest.raises(PluginError, match=r"counting.*video 0"):
        list(read_videos(dataset, [0], 0, False))
