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
from mgmae_cli.video.shapes_scene import SPRITE_REACH, Bytes, Floats, Scene, Sprite

WAVE_NUMBER = 2.0  # radians per radius: a wave is about three radii long
OUTSIDE = 255  # layer number of what no pixel of a frame shows


def render(scene: Scene, height: int, width: int) -> tuple[Bytes, Bytes]:
    """Return the frames (T, H, W, 3) and (T, H, W) the number of the layer that each pixel shows, 0 the background."""
    half = np.array([width - 1, height - 1]) / 2
    frames = np.stack([cv2.getRectSubPix(scene.background, (width, height), corner + half) for corner in scene.corner])
    layers = np.zeros(frames.shape[:3], np.uint8)
    for number, sprite in enumerate(scene.sprites, start=1):
        _paint(sprite, number, frames, layers)
    return frames, layers


def _paint(sprite: Sprite, number: int, frames: Bytes, layers: Bytes) -> None:
    """Blend a sprite into the frames, inside a box that follows it."""
    height, width = frames.shape[1:3]
    stretch = 1 if sprite.wave is None else 1 + 1.5 * float(np.abs(sprite.wave).max())
    side = 2 * int(np.ceil(float(sprite.scale.max()) * stretch)) + 4
    rows, cols = min(side, height), min(side, width)
    corner = np.rint(sprite.centre).astype(int) - side // 2
    left = np.clip(corner[:, 0], 0, width - cols).astype(np.float32)
    top = np.clip(corner[:, 1], 0, height - rows).astype(np.float32)
    dx = left[:, None] + np.arange(cols, dtype=np.float32) - sprite.centre[:, :1]
    dy = top[:, None] + np.arange(rows, dtype=np.float32) - sprite.centre[:, 1:]
    cos, sin = np.cos(sprite.angle) / sprite.scale, np.sin(sprite.angle) / sprite.scale
    x = (cos[:, None] * dx)[:, None, :] + (sin[:, None] * dy)[:, :, None]
    y = (cos[:, None] * dy)[:, :, None] - (sin[:, None] * dx)[:, None, :]
    if sprite.wave is not None:
        x, y = _bend(sprite, x, y, sprite.wave[:, None, None])
    sampled = _sample(sprite.picture, x.reshape(-1, cols), y.reshape(-1, cols)).reshape(len(frames), rows, cols, 4)
    for frame, layer, patch, row, col in zip(frames, layers, sampled, top.astype(int), left.astype(int)):
        box = np.s_[row : row + rows, col : col + cols]
        opacity = patch[..., 3]
        weight = opacity * np.float32(1 / 255)
        frame[box] = cv2.blendLinear(
            np.ascontiguousarray(patch[..., :3]), np.ascontiguousarray(frame[box]), weight, 1 - weight
        )
        layer[box][opacity > 127] = number


def _sample(picture: Bytes, x: Floats, y: Floats) -> Bytes:
    """Sample a sprite's picture at places in radii from its centre, bilinearly."""
    middle = (len(picture) - 1) / 2
    scale = middle / SPRITE_REACH
    sampled: Bytes = cv2.remap(picture, x * scale + middle, y * scale + middle, cv2.INTER_LINEAR)
    return sampled


def _bend(sprite: Sprite, x: Floats, y: Floats, wave: Floats) -> tuple[Floats, Floats]:
    """Carry places in the posed sprite to places in its picture."""
    x = x + wave * np.sin(WAVE_NUMBER * y + sprite.phase[0])
    return x, y + wave * np.sin(WAVE_NUMBER * x + sprite.phase[1])


def _unbend(sprite: Sprite, x: Floats, y: Floats, wave: Floats) -> tuple[Floats, Floats]:
    """Undo `_bend`."""
    y = y - wave * np.sin(WAVE_NUMBER * x + sprite.phase[1])
    return x - wave * np.sin(WAVE_NUMBER * y + sprite.phase[0]), y


def truth_flow(scene: Scene, layers: Bytes) -> TruthFlow:
    """Return the exact flow between neighbouring frames, from what `render` returned."""
    frames = np.arange(len(layers))
    forward, hidden_forward = _flow(scene, layers, frames[:-1], frames[1:])
    backward, hidden_backward = _flow(scene, layers, frames[1:], frames[:-1])
    return TruthFlow(*(torch.from_numpy(array)[None] for array in (forward, backward, hidden_forward, hidden_backward)))


def _flow(
    scene: Scene, layers: Bytes, source: NDArray[np.int_], target: NDArray[np.int_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (P, 2, H, W) flow from frames `source` to frames `target`, and where it ends hidden or outside."""
    height, width = layers.shape[1:]
    shown = layers[source]
    flow = np.empty((len(source), 2, height, width), np.float32)
    flow[:] = (scene.corner[source] - scene.corner[target])[:, :, None, None]
    for number, sprite in enumerate(scene.sprites, start=1):
        pair, row, col = np.nonzero(shown == number)
        x, y = _carry(sprite, source[pair], target[pair], col.astype(np.float32), row.astype(np.float32))
        flow[pair, 0, row, col] = x - col
        flow[pair, 1, row, col] = y - row
    return flow, shown != _layer_at(layers[target], flow)


def _carry(
    sprite: Sprite, source: NDArray[np.int_], target: NDArray[np.int_], x: Floats, y: Floats
) -> tuple[Floats, Floats]:
    """Carry places in frames `source` to where the sprite takes them in frames `target`; all arguments are (n,)."""
    dx, dy = x - sprite.centre[source, 0], y - sprite.centre[source, 1]
    turn = np.exp(-1j * sprite.angle.astype(np.complex64)) / sprite.scale
    point = (dx + 1j * dy) * turn[source]
    if sprite.wave is not None:
        px, py = _bend(sprite, point.real, point.imag, sprite.wave[source])
        px, py = _unbend(sprite, px, py, sprite.wave[target])
        point = px + 1j * py
    point = point / turn[target]
    return point.real + sprite.centre[target, 0], point.imag + sprite.centre[target, 1]


def _layer_at(layers: Bytes, flow: Floats) -> Bytes:
    """Return (P, H, W) the layer that the pixel nearest to where the flow ends shows, OUTSIDE outside the frame."""
    pairs, height, width = layers.shape
    framed = np.full((pairs, height + 2, width + 2), OUTSIDE, np.uint8)
    framed[:, 1:-1, 1:-1] = layers
    x = np.clip(flow[:, 0] + np.arange(1, width + 1, dtype=np.float32), 0, width + 1)
    y = np.clip(flow[:, 1] + np.arange(1, height + 1, dtype=np.float32)[:, None], 0, height + 1)
    y += (height + 2) * np.arange(pairs, dtype=np.float32)[:, None, None]
    found: Bytes = cv2.remap(
        framed.reshape(-1, width + 2), x.reshape(-1, width), y.reshape(-1, width), cv2.INTER_NEAREST
    )
    return found.reshape(pairs, height, width)
