"""Pictures of masks, flow and reconstructions, and curves: what people look at instead of numbers.

Everything here takes plain tensors of one clip on the CPU and returns Pillow images, or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import flow_to_image

from mgmae_cli.errors import RunError
from mgmae_cli.grid import ClipGrid

_GAP, _MARGIN, _LABEL, _LEGEND = 4, 10, 168, 72
_BACKGROUND, _INK = (255, 255, 255), (30, 30, 30)
_MASKED = 208  # the light grey of masked tokens: few real patches look like it
_SMALLEST_CELL = 160  # pixels; smaller clips are enlarged, clips of twice the size halved
_TITLE_SIZE, _TEXT_SIZE, _COLUMN_SIZE = 18, 16, 14
_FULL_COLOUR = 0.99  # share of the flow below full colour: a few wild vectors would leave the rest white


@dataclass(frozen=True)
class Row:
    """One row of a sheet.

    Args:
        label: shown at its left; may have several lines.
        frames: (T, 3, h, w) uint8, one picture a frame.
        marked: number of the frame that gets an outline, such as the base frame.
        legend: (3, h, w) uint8, a small picture below the label.
    """

    label: str
    frames: Tensor
    marked: int | None = None
    legend: Tensor | None = None


def clip_row(label: str, clip: Tensor) -> Row:
    """Return the row of a (3, T, H, W) uint8 clip."""
    return Row(label, clip.transpose(0, 1))


def flow_row(label: str, flow: Tensor) -> Row:
    """Return the row of (T-1, 2, h, w) flow in Middlebury's colours, on one scale that the label tells.

    The flow of a frame to the next has no last frame: that one repeats its neighbour's.
    """
    length = flow.float().norm(dim=1, keepdim=True)
    full = float(torch.quantile(length[:, :, ::2, ::2].flatten(), _FULL_COLOUR).clamp_min(1e-6))
    # flow_to_image takes the longest vector for full colour: put one there, beside the frames.
    shortened = F.pad(flow.float() * (full / length.clamp_min(full)), (0, 1))
    shortened[:, 0, :, -1] = full
    colours: Tensor = flow_to_image(shortened)[..., :-1]
    scale = f"{label}\nfull colour: {full:.1f} px" if full > 0.05 else f"{label}\nno motion"
    return Row(scale, torch.cat([colours, colours[-1:]]), legend=_colour_wheel())


def _colour_wheel() -> Tensor:
    """Return (3, h, w) uint8: the colour of each direction and length of flow, from the centre out."""
    across = torch.linspace(-1.0, 1.0, 2 * _LEGEND)
    y, x = torch.meshgrid(across, across, indexing="ij")
    inside = torch.hypot(x, y) <= 1
    wheel: Tensor = flow_to_image(torch.stack([x, y]) * inside)
    return torch.where(inside, wheel, torch.tensor(255, dtype=torch.uint8))


def visibility_row(label: str, visibility: Tensor, marked: int | None = None) -> Row:
    """Return the row of a (T, h, w) visibility map; yellow is high."""
    values = visibility / visibility.amax().clamp_min(1e-12)
    colours = colormaps["viridis"](values.numpy())[..., :3]
    return Row(label, torch.from_numpy((colours * 255).astype(np.uint8)).permute(0, 3, 1, 2), marked)


def mask_row(label: str, clip: Tensor, mask: Tensor, grid: ClipGrid) -> Row:
    """Return the row of a clip with its masked tokens in grey.

    Args:
        clip: (3, T, H, W) uint8.
        mask: (N,) bool, True = masked.
    """
    slots = mask.view(grid.slots, 1, grid.rows, grid.cols).float()
    hidden = F.interpolate(slots, size=(grid.height, grid.width)).repeat_interleave(grid.tubelet, 0) > 0.5
    return Row(label, torch.where(hidden, torch.tensor(_MASKED, dtype=torch.uint8), clip.transpose(0, 1)))


def sheet(rows: Sequence[Row], frames: Sequence[int], title: str = "") -> Image.Image:
    """Lay rows out under one another, with a column for each of the chosen frames."""
    height, width = _cell(rows)
    top = _MARGIN + (_TITLE_SIZE + 10 if title else 0) + _COLUMN_SIZE + 8
    canvas = Image.new(
        "RGB",
        (_MARGIN * 2 + _LABEL + len(frames) * (width + _GAP), top + len(rows) * (height + _GAP) + _MARGIN),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(canvas)
    _write_title(draw, title, canvas.width)
    for column, frame in enumerate(frames):
        x = _MARGIN + _LABEL + column * (width + _GAP)
        draw.text((x, top - _COLUMN_SIZE - 5), f"frame {frame}", _INK, _font(_COLUMN_SIZE))
    for number, row in enumerate(rows):
        y = top + number * (height + _GAP)
        draw.multiline_text((_MARGIN, y + 4), row.label, _INK, _font(_TEXT_SIZE), spacing=4)
        if row.legend is not None:
            below = y + 12 + (row.label.count("\n") + 1) * (_TEXT_SIZE + 6)
            canvas.paste(_picture(row.legend, _LEGEND, _LEGEND), (_MARGIN, below))
        for column, frame in enumerate(frames):
            x = _MARGIN + _LABEL + column * (width + _GAP)
            canvas.paste(_picture(row.frames[frame], height, width), (x, y))
            if row.marked == frame:
                draw.rectangle((x, y, x + width - 1, y + height - 1), outline=(230, 30, 30), width=3)
    return canvas


def animation(rows: Sequence[Row], title: str = "") -> list[Image.Image]:
    """Return one picture a frame, the rows side by side under their labels."""
    height, width = _cell(rows)
    lines = max(row.label.count("\n") for row in rows) + 1
    line = _TEXT_SIZE + 5
    top = _MARGIN + (_TITLE_SIZE + 10 if title else 0) + lines * line + 4
    pictures = []
    for frame in range(len(rows[0].frames)):
        canvas = Image.new("RGB", (_MARGIN * 2 + len(rows) * (width + _GAP), top + height + _MARGIN), _BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        _write_title(draw, title, canvas.width)
        for number, row in enumerate(rows):
            x = _MARGIN + number * (width + _GAP)
            draw.multiline_text((x, top - lines * line - 2), row.label, _INK, _font(_TEXT_SIZE), spacing=3)
            canvas.paste(_picture(row.frames[frame], height, width), (x, top))
        pictures.append(canvas)
    return pictures


def save_picture(picture: Image.Image | Sequence[Image.Image], path: Path, seconds_a_frame: float = 0.2) -> None:
    """Write a picture, or an animation that repeats; the ending of the name chooses the format.

    Raises:
        RunError: the folder is missing, the disk full, or the ending unknown.
    """
    try:
        if isinstance(picture, Image.Image):
            picture.save(path)
        else:
            duration = round(1000 * seconds_a_frame)
            picture[0].save(path, save_all=True, append_images=list(picture[1:]), duration=duration, loop=0)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"{path}: picture not written: {reason}; choose another --out") from error


def loss_curve(records: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Draw the loss and the learning rate over the steps.

    Args:
        records: lines of metrics.jsonl; those without a loss are left out.

    Raises:
        RunError: the picture can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [record for record in records if "loss" in record]
    steps = [record["step"] for record in lines]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, [record["loss"] for record in lines], color="tab:blue", marker="." if len(steps) < 30 else "")
    axes.set(xlabel="step", ylabel="loss on masked tokens", title=title)
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [record["lr"] for record in lines], color="tab:gray", linewidth=0.8)
    rates.set_ylabel("learning rate", color="tab:gray")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_zorder(rates.get_zorder() + 1)  # the loss in front
    axes.patch.set_visible(False)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise RunError(f"{path}: picture not written: {error.strerror or error}") from error


def slot_frames(grid: ClipGrid) -> list[int]:
    """Return the first frame of every slot: the columns of a sheet."""
    return list(range(0, grid.frames, grid.tubelet))


def _cell(rows: Sequence[Row]) -> tuple[int, int]:
    height, width = max((tuple(row.frames.shape[2:]) for row in rows), key=lambda size: size[0] * size[1])
    scale = max(1, -(-_SMALLEST_CELL // min(height, width)))
    if min(height, width) >= 2 * _SMALLEST_CELL:
        return height // 2, width // 2
    return height * scale, width * scale


def _write_title(draw: ImageDraw.ImageDraw, title: str, width: int) -> None:
    """Write the title; of one that is too long, such as a path, the end."""
    font, shown = _font(_TITLE_SIZE), title
    while len(shown) > 1 and draw.textlength(shown, font) > width - 2 * _MARGIN:
        title = title[1:]
        shown = f"...{title}"
    draw.text((_MARGIN, _MARGIN - 3), shown, _INK, font)


def _picture(frame: Tensor, height: int, width: int) -> Image.Image:
    picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    larger = picture.height < height
    return picture.resize((width, height), Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
