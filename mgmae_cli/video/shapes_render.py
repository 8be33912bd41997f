"""Render a scene of `shapes`, and its exact flow and occlusion.

Rendering maps backward: each pixel of a sprite's surroundings is carried into the sprite's picture and sampled there.
Flow carries each pixel into its layer's picture by one frame's pose and out again by the next frame's. A pixel belongs
to the nearest layer that covers more than half of it, though its colour is a blend at the edges.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mgmae_cli.interfaces import TruthFlow
from mgmae_cli.video.shapes_scene import SPRITE_REACH, Bytes, Floats, Places, Scene, Sprite

WAVE_NUMBER = np.float32(2)  # radians per radius: a wave is about three radii long
OUTSIDE = 255  # layer number of what no pixel of a frame shows


def render(scene: Scene, height: int, width: int) -> tuple[Bytes, Bytes]:
    """Return the frames (T, H, W, 3) and (T, H, W) the number of the layer that each pixel shows, 0 the background."""
    middle = scene.corner + complex(width - 1, height - 1) / 2
    frames = np.empty((len(middle), height, width, 3), np.uint8)
    layers = np.zeros(frames.shape[:3], np.uint8)
    for frame, place in zip(frames, middle.tolist()):
        cv2.getRectSubPix(scene.background, (width, height), (place.real, place.imag), frame)
    for number, sprite in enumerate(scene.sprites, start=1):
        _paint(sprite, number, frames, layers)
    return frames, layers


def _paint(sprite: Sprite, number: int, frames: Bytes, layers: Bytes) -> None:
    """Blend a sprite into the frames, inside a box that follows it."""
    height, width = frames.shape[1:3]
    stretch = 1 if sprite.wave is None else 1 + 1.5 * float(np.abs(sprite.wave).max())
    reach = int(np.ceil(float(np.abs(sprite.pose).max()) * stretch)) + 2
    rows, cols = min(2 * reach, height), min(2 * reach, width)
    left = np.clip(np.rint(sprite.centre.real).astype(int) - reach, 0, width - cols)
    top = np.clip(np.rint(sprite.centre.imag).astype(int) - reach, 0, height - rows)
    corner = (left + 1j * top - sprite.centre).astype(np.complex64)[:, None, None]
    point = corner + _pixels(rows, cols)
    point /= sprite.pose[:, None, None]
    frame = np.arange(len(frames))[:, None, None]
    sampled = _sample(sprite.picture, _bend(sprite, point, frame).reshape(-1, cols))
    colour, opacity = cv2.cvtColor(sampled, cv2.COLOR_BGRA2BGR), cv2.extractChannel(sampled, 3)
    boxes = [np.s_[t, y : y + rows, x : x + cols] for t, (x, y) in enumerate(zip(left.tolist(), top.tolist()))]
    behind = np.concatenate([frames[box] for box in boxes])
    weight = opacity * np.float32(1 / 255)
    blended = cv2.blendLinear(colour, behind, weight, 1 - weight).reshape(-1, rows, cols, 3)
    covered = (opacity > 127).reshape(-1, rows, cols)
    for box, patch, mine in zip(boxes, blended, covered):
        frames[box] = patch
        np.putmask(layers[box], mine, number)


def _pixels(rows: int, cols: int) -> Places:
    """Return (rows, cols) places of pixels."""
    places: Places = np.arange(cols, dtype=np.complex64) + 1j * np.arange(rows, dtype=np.float32)[:, None]
    return places


def _sample(picture: Bytes, point: Places) -> Bytes:
    """Sample a sprite's picture at points of its shape, bilinearly."""
    middle = (len(picture) - 1) / 2
    place = point * np.float32(middle / SPRITE_REACH)
    place += np.complex64(complex(middle, middle))
    sampled: Bytes = cv2.remap(picture, place.view(np.float32).reshape(*place.shape, 2), None, cv2.INTER_LINEAR)
    return sampled


def _bend(sprite: Sprite, point: Places, frame: NDArray[np.int_]) -> Places:
    """Carry points of the posed shape, as bent in `frame`, to points of the unbent one.

    Two shears, one after the other: each is undone exactly, so that flow is exact under bending too.
    """
    if sprite.wave is None:
        return point
    wave = sprite.wave[frame]
    x = point.real + wave * np.sin(WAVE_NUMBER * point.imag + np.float32(sprite.phase[0]))
    bent: Places = x + 1j * (point.imag + wave * np.sin(WAVE_NUMBER * x + np.float32(sprite.phase[1])))
    return bent


def _unbend(sprite: Sprite, point: Places, frame: NDArray[np.int_]) -> Places:
    """Undo `_bend`."""
    if sprite.wave is None:
        return point
    wave = sprite.wave[frame]
    y = point.imag - wave * np.sin(WAVE_NUMBER * point.real + np.float32(sprite.phase[1]))
    unbent: Places = point.real - wave * np.sin(WAVE_NUMBER * y + np.float32(sprite.phase[0])) + 1j * y
    return unbent


def truth_flow(scene: Scene, layers: Bytes) -> TruthFlow:
    """Return the exact flow between neighbouring frames, from what `render` returned."""
    pairs, height, width = len(layers) - 1, *layers.shape[1:]
    forward, backward = (np.empty((pairs, 2, height, width), np.float32) for _ in range(2))
    pan = scene.corner[:-1] - scene.corner[1:]
    for channel, step in enumerate((pan.real, pan.imag)):
        forward[:, channel] = step[:, None, None]
        backward[:, channel] = -step[:, None, None]
    for number, sprite in enumerate(scene.sprites, start=1):
        _move(sprite, layers == number, forward, backward)
    truth = forward, backward, _hidden(layers[:-1], layers[1:], forward), _hidden(layers[1:], layers[:-1], backward)
    return TruthFlow(*(torch.from_numpy(array)[None] for array in truth))


def _move(sprite: Sprite, mine: NDArray[np.bool_], forward: Floats, backward: Floats) -> None:
    """Write the flow of the pixels that show a sprite, (T, H, W) `mine`, into (T-1, 2, H, W) flows."""
    frame_size = mine[0].size
    source, pixel = divmod(np.flatnonzero(mine), frame_size)
    here = _pixels(*mine.shape[1:]).reshape(-1)[pixel]
    point = _bend(sprite, (here - sprite.centre[source]) / sprite.pose[source], source)
    first, last = np.searchsorted(source, (1, len(mine) - 1)).tolist()  # pixels are in the order of time
    for flow, step, known in ((forward, 1, np.s_[:last]), (backward, -1, np.s_[first:])):
        target = source[known] + step
        move = sprite.centre[target] + sprite.pose[target] * _unbend(sprite, point[known], target) - here[known]
        place = np.minimum(source[known], target) * (2 * frame_size) + pixel[known]
        flow.reshape(-1)[place] = move.real
        flow.reshape(-1)[place + frame_size] = move.imag


def _hidden(source: Bytes, target: Bytes, flow: Floats) -> NDArray[np.bool_]:
    """Return (P, H, W) where the pixel nearest to the flow's end shows another layer, or lies outside the frame."""
    x = np.arange(source.shape[2], dtype=np.float32)
    y = np.arange(source.shape[1], dtype=np.float32)[:, None]
    nearest = (cv2.INTER_NEAREST, None, cv2.BORDER_CONSTANT, OUTSIDE)
    hidden = np.empty(source.shape, np.bool_)
    for pair in range(len(source)):  # pair by pair, for short arrays stay in the processor's cache
        found = cv2.remap(target[pair], flow[pair, 0] + x, flow[pair, 1] + y, *nearest)
        np.not_equal(source[pair], found, out=hidden[pair])
    return hidden
