"""Pictures show what they are given: the right colours, in the right place, in the right order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mgmae_cli.diagnose.pictures import (
    Row,
    animation,
    clip_row,
    flow_row,
    loss_curve,
    mask_row,
    save_picture,
    sheet,
    slot_frames,
    visibility_row,
)
from mgmae_cli.errors import RunError
from mgmae_cli.grid import ClipGrid

GRID = ClipGrid(frames=4, height=32, width=48, tubelet=2, patch=16)


def flat_clip(frames: int = 4, height: int = 32, width: int = 48) -> Tensor:
    """Return (3, T, H, W) uint8 of one colour a frame: red grows with time, green stays, no blue."""
    clip = torch.zeros(3, frames, height, width, dtype=torch.uint8)
    clip[0] = 40 * torch.arange(1, frames + 1).view(-1, 1, 1)
    clip[1] = 90
    return clip


def colours_in(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}


def constant_flow(dx: float, dy: float, frames: int = 4) -> Tensor:
    return torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(frames - 1, 2, 16, 24).clone()


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(3.0, 0.0), (-3.0, 0.0), (0.0, 3.0), (0.0, -3.0), (2.0, -2.0)])
def test_flow_has_the_colour_that_the_legend_shows_in_its_direction(dx: float, dy: float) -> None:
    row = flow_row("flow", constant_flow(dx, dy))
    assert row.legend is not None
    middle = row.legend.shape[-1] / 2
    reach = 0.97 * middle / (dx**2 + dy**2) ** 0.5
    shown = row.legend[:, int(middle + dy * reach), int(middle + dx * reach)]
    assert (shown.int() - row.frames[0, :, 8, 12].int()).abs().max() <= 12


def test_flow_is_coloured_on_one_scale_that_the_label_tells() -> None:
    flow = constant_flow(8, 0)
    flow[1] /= 4
    row = flow_row("flow (dis)", flow)
    assert row.label == "flow (dis)\nfull colour: 8.0 px"
    saturation = row.frames.float().amax(dim=1) - row.frames.float().amin(dim=1)
    assert saturation[0].mean() > 3 * saturation[1].mean()
    assert row.frames.shape == (4, 3, 16, 24)
    assert torch.equal(row.frames[3], row.frames[2])


def test_one_wild_vector_leaves_the_rest_of_the_flow_in_colour() -> None:
    flow = constant_flow(4, 0)
    calm = flow_row("flow", flow).frames
    flow[0, :, 0, 0] = 500.0
    wild = flow_row("flow", flow).frames
    assert torch.equal(calm[1], wild[1])


def test_no_motion_is_white_and_says_so() -> None:
    row = flow_row("flow (zero)", constant_flow(0, 0))
    assert row.label == "flow (zero)\nno motion"
    assert bool((row.frames == 255).all())


def test_a_visibility_map_is_yellow_where_it_is_high() -> None:
    visibility = torch.zeros(4, 8, 12)
    visibility[2, 3, 5] = 0.4
    frames = visibility_row("map", visibility, marked=2).frames
    assert frames.shape == (4, 3, 8, 12)
    assert frames[2, :, 3, 5].tolist() == [253, 231, 36]
    assert frames[0, :, 0, 0].tolist() == [68, 1, 84]


def test_an_empty_visibility_map_is_dark_and_no_error() -> None:
    assert visibility_row("map", torch.zeros(4, 8, 12)).frames[0, :, 0, 0].tolist() == [68, 1, 84]


def test_masked_tokens_are_grey_and_visible_ones_untouched() -> None:
    clip = torch.arange(3 * 4 * 32 * 48, dtype=torch.int64).remainder(199).to(torch.uint8).view(3, 4, 32, 48)
    mask = torch.ones(GRID.tokens, dtype=torch.bool)
    slot, patch_row, patch_col = 1, 0, 2
    mask[slot * GRID.patches + patch_row * GRID.cols + patch_col] = False
    frames = mask_row("mask", clip, mask, GRID).frames
    untouched = frames == clip.transpose(0, 1)
    assert bool(untouched[2:, :, :16, 32:48].all())
    untouched[2:, :, :16, 32:48] = False
    assert not untouched.any()
    grey = frames[0, :, 0, 0]
    assert bool((frames[:2] == grey[0]).all())
    assert len(set(grey.tolist())) == 1


# --- sheets and animations ----------------------------------------------------------------------------------------


def test_a_sheet_shows_the_chosen_frames_in_columns_and_the_rows_in_order() -> None:
    first, second = flat_clip(), flat_clip().flip(0)  # red over blue
    picture = sheet([clip_row("first", first), clip_row("second", second)], [0, 2])
    pixels = np.asarray(picture).astype(int)
    places = {
        name: np.argwhere((pixels == colour).all(-1)).mean(0)
        for name, colour in {"00": (40, 90, 0), "02": (120, 90, 0), "10": (0, 90, 40), "12": (0, 90, 120)}.items()
    }
    assert places["00"][0] == places["02"][0] < places["10"][0] == places["12"][0]
    assert places["00"][1] == places["10"][1] < places["02"][1] == places["12"][1]
    assert (80, 90, 0) not in colours_in(picture)  # frame 1 was not asked for


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((32, 48), (160, 240)), ((64, 64), (192, 192)), ((224, 224), (224, 224)), ((360, 480), (180, 240))],
)
def test_small_clips_are_enlarged_and_large_ones_halved(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    pixels = np.asarray(sheet([clip_row("clip", flat_clip(1, *size))], [0]))
    rows, cols = np.nonzero((pixels == (40, 90, 0)).all(-1))
    assert (np.ptp(rows) + 1, np.ptp(cols) + 1) == drawn


def test_rows_on_coarser_grids_fill_the_same_cells() -> None:
    coarse = Row("coarse", torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 8, 12))
    pixels = np.asarray(sheet([clip_row("clip", flat_clip()), coarse], [0]))
    areas = [int((pixels == colour).all(-1).sum()) for colour in ((40, 90, 0), (10, 20, 30))]
    assert areas == [160 * 240, 160 * 240]


def test_only_the_marked_frame_is_outlined() -> None:
    clip = flat_clip()
    plain, marked, elsewhere = (
        sheet([Row("map", clip.transpose(0, 1), number)], slot_frames(GRID)) for number in (None, 2, 1)
    )
    assert elsewhere.tobytes() == plain.tobytes()  # frame 1 has no column
    rows, cols = np.nonzero((np.asarray(marked) != np.asarray(plain)).any(-1))
    assert (np.ptp(rows) + 1, np.ptp(cols) + 1) == (160, 240)
    assert marked.getpixel((int(cols.mean()), int(rows.mean()))) == (120, 90, 0)  # the cell of frame 2, still seen


def test_labels_legends_and_titles_stay_clear_of_the_pictures() -> None:
    rows = [clip_row("motion\n160 of 1568\ntokens visible", flat_clip()), flow_row("flow (raft)", constant_flow(12, 5))]
    bare = np.asarray(sheet([Row("", row.frames) for row in rows], [0, 1], "x"))
    told = np.asarray(sheet(rows, [0, 1], "x"))
    changed_rows, changed_cols = np.nonzero((bare != told).any(-1))
    first_cell = np.nonzero((bare == (40, 90, 0)).all(-1))[1].min()
    assert 0 < changed_cols.max() < first_cell
    assert changed_rows.max() < told.shape[0] - 5


def test_of_a_title_too_long_for_the_sheet_the_end_is_shown() -> None:
    row = clip_row("clip", flat_clip())
    long = "/".join(["a folder with a rather long name"] * 20)
    picture = np.asarray(sheet([row], [0], f"{long}/video.mp4"))
    assert (picture[:, -8:] == 255).all()
    same_end = np.asarray(sheet([row], [0], f"b{long}/video.mp4"))
    other_end = np.asarray(sheet([row], [0], f"{long}/other.mp4"))
    assert np.array_equal(picture, same_end)
    assert not np.array_equal(picture, other_end)


def test_an_animation_has_a_picture_a_frame_with_the_rows_side_by_side() -> None:
    pictures = animation([clip_row("first", flat_clip()), clip_row("two\nlines", flat_clip().flip(0))], "title")
    assert len(pictures) == 4
    for frame, picture in enumerate(pictures):
        pixels, red = np.asarray(picture), 40 * (frame + 1)
        left = np.argwhere((pixels == (red, 90, 0)).all(-1))
        right = np.argwhere((pixels == (0, 90, red)).all(-1))
        assert len(left) == len(right) == 160 * 240
        assert left[:, 1].max() < right[:, 1].min()


def test_a_gif_keeps_its_frames_its_pace_and_repeats(tmp_path: Path) -> None:
    save_picture(animation([clip_row("clip", flat_clip())]), tmp_path / "clip.gif", seconds_a_frame=0.5)
    with Image.open(tmp_path / "clip.gif") as picture:
        assert (picture.n_frames, picture.info["duration"], picture.info["loop"]) == (4, 500, 0)
        picture.seek(3)
        red, green, blue = picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))
        assert abs(red - 160) + abs(green - 90) + blue < 12


def test_a_sheet_is_written_as_its_name_ends(tmp_path: Path) -> None:
    picture = sheet([clip_row("clip", flat_clip())], [0, 2])
    save_picture(picture, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as read:
        assert read.format == "PNG"
        assert read.tobytes() == picture.tobytes()


@pytest.mark.parametrize("name", ["no/such/folder.png", "sheet.unknown"])
def test_a_picture_that_can_not_be_written_is_one_clear_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"picture not written: .*; choose another --out"):
        save_picture(sheet([clip_row("clip", flat_clip())], [0]), tmp_path / name)


def test_a_sheet_shows_one_frame_of_every_slot() -> None:
    assert slot_frames(GRID) == [0, 2]
    assert slot_frames(ClipGrid(frames=12, tubelet=4)) == [0, 4, 8]


# --- curves -------------------------------------------------------------------------------------------------------


def blue(path: Path) -> np.ndarray:
    """Return the (row, column) places of the loss's colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return np.argwhere((np.abs(pixels - (31, 119, 180)) < 12).all(-1))


def test_the_loss_curve_falls_where_the_loss_falls(tmp_path: Path) -> None:
    steps = range(1, 101)
    lines = [{"step": step, "loss": 1.0 / step, "lr": 1e-4} for step in steps]
    loss_curve([{"event": "start"}, *lines], tmp_path / "falls.png", "motion masks")
    loss_curve([{**line, "loss": -line["loss"]} for line in lines], tmp_path / "rises.png")
    for name, sign in (("falls", 1), ("rises", -1)):
        places = blue(tmp_path / f"{name}.png")
        first = places[places[:, 1] == places[:, 1].min()][:, 0].mean()
        last = places[places[:, 1] == places[:, 1].max()][:, 0].mean()
        assert sign * (last - first) > 100  # rows are counted from the top


def test_a_loss_curve_that_can_not_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="picture not written"):
        loss_curve([{"step": 1, "loss": 1.0, "lr": 1e-4}], tmp_path / "nowhere" / "loss.png")
