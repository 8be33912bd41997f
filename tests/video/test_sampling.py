"""Which frames of a video make a clip."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.interfaces import ClipRequest
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.sampling import frame_indices


def request(frames: int = 4, stride: int = 2, seed: int = 0, **fields: Any) -> ClipRequest:
    return ClipRequest(frames, stride, 16, 16, derive_generator(seed), **fields)


def indices(total: int, **fields: Any) -> list[int]:
    return frame_indices(request(**fields), total, "a.mp4")


def test_place_fixes_the_window_from_the_first_to_the_last_possible_start() -> None:
    assert indices(10, place=0.0) == [0, 2, 4, 6]
    assert indices(10, place=1.0) == [3, 5, 7, 9]
    assert indices(10, place=0.34) == [1, 3, 5, 7]


def test_random_windows_start_everywhere_where_they_fit_and_nowhere_else() -> None:
    starts = {tuple(indices(10, seed=seed)) for seed in range(60)}
    assert starts == {(s, s + 2, s + 4, s + 6) for s in range(4)}


def test_a_video_of_exactly_one_window_has_one_place() -> None:
    assert {tuple(indices(7, seed=seed)) for seed in range(5)} == {(0, 2, 4, 6)}


def test_the_stride_shrinks_to_the_largest_that_fits_a_short_video() -> None:
    assert indices(10, stride=5, place=0.0) == [0, 3, 6, 9]  # (10 - 1) // 3 = 3
    assert indices(6, stride=2, place=1.0) == [2, 3, 4, 5]  # (6 - 1) // 3 = 1
    assert indices(4, stride=4, place=0.5) == [0, 1, 2, 3]


def test_the_last_frame_is_held_where_there_are_fewer_frames_than_the_clip_has() -> None:
    assert indices(3) == [0, 1, 2, 2]
    assert indices(1, min_frames=1) == [0, 0, 0, 0]


def test_too_few_frames_make_the_clip_unreadable() -> None:
    with pytest.raises(UnreadableClip, match=r"^a.mp4: has 1 frame; data.min_frames is 2$"):
        indices(1)
    with pytest.raises(UnreadableClip, match=r"has 7 frames; data\.min_frames is 8"):
        indices(7, min_frames=8)
    with pytest.raises(UnreadableClip, match="has 0 frames"):
        indices(0, min_frames=1)


def test_segments_take_one_frame_from_each_equal_part() -> None:
    assert indices(8, sampling="segments", place=0.0) == [0, 2, 4, 6]
    assert indices(8, sampling="segments", place=0.5) == [1, 3, 5, 7]
    assert indices(8, sampling="segments", place=1.0) == [1, 3, 5, 7]
    assert indices(10, sampling="segments", place=0.5) == [1, 3, 6, 8]  # parts of 2.5 frames: 1.25, 3.75, 6.25, 8.75
    drawn = {tuple(indices(8, sampling="segments", seed=seed)) for seed in range(200)}
    assert drawn == set(product((0, 1), (2, 3), (4, 5), (6, 7)))


def test_segments_of_a_short_video_repeat_frames_evenly() -> None:
    assert indices(2, sampling="segments") == [0, 0, 1, 1]


def test_a_clip_of_one_frame_needs_no_window() -> None:
    assert indices(5, frames=1, place=1.0) == [4]


@pytest.mark.parametrize("sampling", ["stride", "segments"])
def test_indices_ascend_and_stay_inside_for_all_lengths(sampling: Any) -> None:
    for total, frames, stride, place in product(range(2, 40, 3), (1, 2, 5, 16), (1, 3, 8), (None, 0.0, 0.7, 1.0)):
        chosen = indices(total, frames=frames, stride=stride, sampling=sampling, place=place)
        assert len(chosen) == frames
        assert chosen == sorted(chosen)
        assert 0 <= chosen[0] <= chosen[-1] < total


def test_only_the_passed_generator_decides() -> None:
    torch.manual_seed(1)
    first = [indices(100, seed=3), indices(100, seed=3, sampling="segments")]
    torch.manual_seed(2)
    assert [indices(100, seed=3), indices(100, seed=3, sampling="segments")] == first
