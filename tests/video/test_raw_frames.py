"""Folders of images as videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.video.raw_frames import holds_images, read_frames


def write_frames(folder: Path, names: list[str], size: tuple[int, int] = (24, 32)) -> Path:
    """Write images whose grey value is 5 times their place in `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), np.full((*size, 3), 5 * place, np.uint8))
    return folder


def places(clip: torch.Tensor) -> list[int]:
    return [round(frame.float().mean().item() / 5) for frame in clip]


def read(folder: Path, indices: list[int], **options: Any) -> list[int]:
    return places(read_frames(folder, lambda total: indices, **options))


@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "image_{:06d}.png", "{:d}.bmp", "clip_7_{:03d}.JPG"])
def test_numbered_images_are_found_by_their_number(tmp_path: Path, pattern: str) -> None:
    folder = write_frames(tmp_path / "a", [pattern.format(number) for number in range(1, 13)])
    assert read(folder, [0, 4, 8, 11]) == [0, 4, 8, 11]  # also where 10 sorts before 2
    assert read(folder, [0, 0, 3], start=4) == [3, 3, 6]


def test_images_without_numbers_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", ["a.png", "b.png", "c7.png", "d.png"])
    (folder / "notes.txt").touch()
    (folder / ".hidden.png").touch()
    assert read(folder, [0, 2, 3]) == [0, 2, 3]
    with pytest.raises(UnreadableClip, match="holds 4 images; frame 5 is missing"):
        read(folder, [5])


def test_the_number_of_frames_is_the_lists_or_all_there_are(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", [f"{number:04d}.png" for number in range(3, 10)])
    totals: list[int] = []

    def choose(total: int) -> list[int]:
        totals.append(total)
        return [0]

    read_frames(folder, choose)
    read_frames(folder, choose, start=5)
    read_frames(folder, choose, start=5, total=3)
    assert totals == [7, 5, 3]


def test_a_missing_frame_is_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", [f"img_{number:05d}.jpg" for number in (1, 2, 4)])
    assert read(folder, [0, 1, 3]) == [0, 1, 2]
    with pytest.raises(UnreadableClip, match=r"^.*a: frame img_00003\.jpg is missing$"):
        read(folder, [0, 2])
    with pytest.raises(UnreadableClip, match=r"frame img_00117\.jpg is missing"):
        read(folder, [116], start=1, total=117)


def test_damaged_frames_and_frames_of_other_sizes_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", ["1.jpg", "2.jpg", "3.jpg"])
    (folder / "2.jpg").write_bytes(b"nothing")
    with pytest.raises(UnreadableClip, match=r"frame 2\.jpg can't be decoded"):
        read(folder, [0, 1])
    write_frames(folder, ["2.jpg"], size=(24, 30))
    with pytest.raises(UnreadableClip, match=r"2\.jpg is not of the size of 1\.jpg"):
        read(folder, [0, 1, 2])


def test_folders_that_are_gone_or_empty_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableClip, match="no such folder"):
        read(tmp_path / "gone", [0])
    with pytest.raises(UnreadableClip, match="holds no images"):
        read(tmp_path, [0])
    assert not holds_images(tmp_path)
    assert holds_images(write_frames(tmp_path / "a", ["1.jpg"]))


@pytest.mark.parametrize(("least", "factor"), [(65, 1), (64, 2), (33, 2), (32, 4), (16, 8), (4, 8)])
def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path: Path, least: int, factor: int) -> None:
    folder = write_frames(tmp_path / "a", ["1.jpg", "2.jpg"], size=(128, 192))
    clip = read_frames(folder, lambda total: [0, 1], min_side=least)
    assert clip.shape == (2, 3, 128 // factor, 192 // factor)
    assert places(clip) == [0, 1]


def test_colours_come_as_red_green_blue_and_grey_as_three_equal_ones(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.full((8, 8, 3), (10, 20, 230), np.uint8))
    cv2.imwrite(str(tmp_path / "2.png"), np.full((8, 8), 77, np.uint8))
    clip: Any = read_frames(tmp_path, lambda total: [0, 1])
    assert clip.dtype == torch.uint8
    assert clip[0, :, 0, 0].tolist() == [230, 20, 10]
    assert clip[1, :, 0, 0].tolist() == [77, 77, 77]
    assert clip.permute(0, 2, 3, 1).is_contiguous()
