"""Draw a scene of `shapes`: what the layers look like, where they lie, how they and the camera move.

A scene is a background and sprites above it. All lie in one world that the camera looks at; the class of a clip is how
the objects move in that world. Everything but the class comes from a random generator and is drawn in an order that
does not depend on the class: at the middle of the clip's time two clips that differ only in class look the same.

Lengths in a Look are pixels of a frame whose shorter side is 64 pixels; larger frames scale them, so that a clip shows
the same scene at any size. Time runs in source frames from the middle of the clip. Places are complex numbers x + iy, x
to the right and y down, so that multiplying by exp(i angle) turns clockwise on the screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Places = NDArray[np.complex64]

REFERENCE_SIDE = 64
GROWTH = 0.4  # speed of the rim in approach and recede, to that in the other classes: growth adds up
SHARPNESS = 4.0  # of the edges in a pattern: tanh of so many times a wave of amplitude 1
SHADES = (1.0, 0.8, 0.6)  # a pattern's strength in red, green and blue
SPRITE_REACH = 1.15  # a sprite's picture covers -1.15 to 1.15 of its radius: the outline and a margin


@dataclass(frozen=True)
class Motion:
    """The part of each kind of motion in a class: each is -1, 0 or 1.

    Args:
        x, y: along the axes, right and down.
        turn: clockwise as seen on the screen.
        grow: each object about its own centre.
        spread: the objects from one another.
    """

    x: int = 0
    y: int = 0
    turn: int = 0
    grow: int = 0
    spread: int = 0


MOTIONS = {
    "left": Motion(x=-1),
    "right": Motion(x=1),
    "up": Motion(y=-1),
    "down": Motion(y=1),
    "clockwise": Motion(turn=1),
    "counter-clockwise": Motion(turn=-1),
    "approach": Motion(grow=1),
    "recede": Motion(grow=-1),
    "part": Motion(spread=1),
    "meet": Motion(spread=-1),
}
STILL = Motion()


@dataclass(frozen=True)
class Look:
    """How a scene is drawn; `ShapesSource.Options` describes the fields."""

    objects: int
    speed: float
    size: float
    occluders: int
    non_rigid: float
    camera: float
    contrast: float
    period: float
    irregular: float


@dataclass(frozen=True)
class Sprite:
    """A layer that moves: its picture, and its pose at each of T times.

    The point p of the posed shape (in radii from its centre) is seen at centre + pose * p in the frame.

    Args:
        picture: (n, n, 4) colours and opacity.
        centre: (T,) pixels.
        pose: (T,) turn and scale: radius in pixels * exp(i angle).
        wave: (T,) how far the shape is bent, in radii; None for rigid sprites.
        phase: where the bending waves across and along begin, radians.
    """

    picture: Bytes
    centre: Places
    pose: Places
    wave: Floats | None
    phase: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """All that a clip shows.

    Args:
        background: (h, w, 3), larger than the frame.
        corner: (T,) where the frame's first pixel lies on the background.
        sprites: from the farthest to the nearest.
    """

    background: Bytes
    corner: Places
    sprites: tuple[Sprite, ...]


def draw_scene(rng: np.random.Generator, motion: Motion, look: Look, height: int, width: int, times: Floats) -> Scene:
    """Draw a scene whose objects move by `motion`.

    Args:
        times: (T,) in source frames, 0 at the middle of the clip.
    """
    unit = min(height, width) / REFERENCE_SIDE
    camera = _camera_path(rng, look.camera * unit, times)
    colour = rng.uniform(108, 148, 3)
    middle = _point(rng.uniform(0.4, 0.6, 2) * (width, height)) - (0.5 + 0.5j)
    ring = rng.uniform(12, 20) * unit
    bearing = rng.uniform(0, 2 * np.pi) + np.arange(look.objects) * (2 * np.pi / look.objects)
    pace = rng.uniform(0.7, 1.3) * look.speed * unit
    drift = complex(motion.x, motion.y) * pace * times
    spread = np.exp(motion.spread * pace / ring * times)
    sprites = []
    for place in ring * np.exp(1j * bearing):
        sprites.append(_sprite(rng, motion, look, unit, middle + place * spread + drift - camera, pace, colour, times))
    for _ in range(look.occluders):
        spot = _point(rng.uniform(0, 1, 2) * (width, height))
        sprites.append(_sprite(rng, STILL, look, unit, spot - camera, pace, colour, times))
    background, origin = _background(rng, colour, look, unit, complex(width, height), camera)
    return Scene(background, (camera - origin).astype(np.complex64), tuple(sprites))


def _point(pair: NDArray[np.float64]) -> complex:
    return complex(pair[0], pair[1])


def _camera_path(rng: np.random.Generator, fastest: float, times: Floats) -> NDArray[np.complex128]:
    """Return (T,) places of the camera: a pan whose velocity changes steadily from one draw to another."""
    first, last = fastest * np.sqrt(rng.uniform(0, 1, 2)) * np.exp(1j * rng.uniform(0, 2 * np.pi, 2))
    duration = max(float(times[-1] - times[0]), 1.0)
    path: NDArray[np.complex128] = (first + last) / 2 * times + (last - first) / (2 * duration) * times**2
    return path


def _sprite(
    rng: np.random.Generator,
    motion: Motion,
    look: Look,
    unit: float,
    path: NDArray[np.complex128],
    pace: float,
    behind: NDArray[np.float64],
    times: Floats,
) -> Sprite:
    """Draw one sprite; it turns with `pace` at its mean rim, and grows with less, for growth adds up."""
    radius = look.size * unit
    rate = pace / radius
    start, phase_x, phase_y, phase = rng.uniform(0, 2 * np.pi, 4).tolist()
    size, period = rng.uniform(0.8, 1.2) * radius, rng.uniform(8, 16)
    pose = size * np.exp(1j * start + (motion.grow * GROWTH + 1j * motion.turn) * rate * times)
    wave = look.non_rigid * np.sin(2 * np.pi / period * times + phase) if look.non_rigid else None
    return Sprite(
        picture=_picture(rng, radius, behind, look),
        centre=path.astype(np.complex64),
        pose=pose.astype(np.complex64),
        wave=None if wave is None else wave.astype(np.float32),
        phase=(phase_x, phase_y),
    )


@lru_cache(maxsize=8)
def _lobes(side: int) -> tuple[Floats, Floats, Floats]:
    """Return x and y over a picture, in radii, and (4, 2, side, side): cos and sin of 2 to 5 times the bearing."""
    line = np.linspace(-SPRITE_REACH, SPRITE_REACH, side, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    bearing = np.arctan2(y, x)
    waves = np.stack([[np.cos(k * bearing), np.sin(k * bearing)] for k in range(2, 6)])
    return x, y, waves.astype(np.float32)


def _picture(rng: np.random.Generator, radius: float, behind: NDArray[np.float64], look: Look) -> Bytes:
    """Draw a lobed shape with a pattern of its own, and a colour unlike the background's."""
    side = int(np.ceil(2 * SPRITE_REACH * 1.25 * radius)) + 1
    x, y, waves = _lobes(side)
    lobes, depth, twist = rng.integers(0, 4), rng.uniform(0.15, 0.3), rng.uniform(0, 2 * np.pi)
    outline = 1 + depth * (np.cos(twist) * waves[lobes, 0] + np.sin(twist) * waves[lobes, 1])
    inside = outline / (1 + depth) - np.hypot(x, y)
    colour = behind + rng.choice((-1, 1), 3) * rng.uniform(30, 50, 3)
    picture = np.empty((side, side, 4), np.float32)
    line = (x[0] + SPRITE_REACH) * (look.size / look.period)
    picture[..., :3] = _pattern(rng, line, line, 2 * SPRITE_REACH * look.size / look.period * (1 + 1j), colour, look)
    picture[..., 3] = 255 * (inside * (side / (2 * SPRITE_REACH)) + 0.5)
    return _to_bytes(picture)


def _background(
    rng: np.random.Generator,
    colour: NDArray[np.float64],
    look: Look,
    unit: float,
    frame: complex,
    camera: NDArray[np.complex128],
) -> tuple[Bytes, complex]:
    """Draw all of the background that the camera sees, and return it with the place of its first pixel in the world."""
    left, top = float(camera.real.min()), float(camera.imag.min())
    right, bottom = float(camera.real.max()) + frame.real, float(camera.imag.max()) + frame.imag
    origin = complex(np.floor(left) - 2, np.floor(top) - 2)
    period, margin = look.period * unit, 3 * unit
    x = (np.arange(origin.real, np.ceil(right) + 3) + 0.5 - left + margin) / period
    y = (np.arange(origin.imag, np.ceil(bottom) + 3) + 0.5 - top + margin) / period
    extent = complex(right - left + 2 * margin, bottom - top + 2 * margin) / period
    return _to_bytes(_pattern(rng, x.astype(np.float32), y.astype(np.float32), extent, colour, look)), origin


def _pattern(
    rng: np.random.Generator, x: Floats, y: Floats, extent: complex, colour: NDArray[np.float64], look: Look
) -> Floats:
    """Draw (len(y), len(x), 3) bright and dark patches that repeat, more or less.

    What repeats can be told from the few tokens that are visible, so that a small model has something to learn at once;
    what does not can be told only from neighbours, and from where a mask lets it leak.

    Args:
        x, y: places of the pixels, in periods.
        extent: how far they reach, whatever the size of the frame.
    """
    cols, rows = int(extent.real) + 3, int(extent.imag) + 3
    tile, once = rng.uniform(-1, 1, (2, 2)), rng.uniform(-1, 1, (rows, cols))
    tile -= tile.mean()
    tile /= np.abs(tile).max()
    field = _interpolate(np.tile(tile, (rows, cols)), 2 * x, 2 * y) + look.irregular * _interpolate(once, x, y)
    strength = look.contrast * np.array(SHADES, np.float32)
    pattern: Floats = np.tanh(SHARPNESS * field)[..., None] * strength + colour.astype(np.float32)
    return pattern


def _interpolate(knots: NDArray[np.float64], x: Floats, y: Floats) -> Floats:
    """Return (len(y), len(x)) values between knots, the first of which lies one before (0, 0)."""
    at_x, at_y = np.meshgrid(x + 1, y + 1)
    field: Floats = cv2.remap(knots.astype(np.float32), at_x, at_y, cv2.INTER_CUBIC, None, cv2.BORDER_REFLECT_101)
    return field


def _to_bytes(picture: Floats) -> Bytes:
    """Round to 0..255."""
    rounded: Bytes = cv2.convertScaleAbs(np.maximum(picture, 0, out=picture))
    return rounded
