"""Draw a scene of `shapes`: what the layers look like, where they lie, how they and the camera move.

A scene is a background and sprites above it. All lie in one world that the camera looks at; the class of a clip is how
the objects move in that world. Everything but the class comes from a random generator and is drawn in an order that
does not depend on the class: at the middle of the clip's time two clips that differ only in class look the same.

Lengths in the arguments are pixels of a frame whose shorter side is 64 pixels; larger frames scale them, so that a clip
shows the same scene at any size. Time runs in source frames from the middle of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

REFERENCE_SIDE = 64
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
    wavelength: float
    contrast: float


@dataclass(frozen=True)
class Sprite:
    """A layer that moves: its picture, and its pose at each of T times.

    A point q of the picture (in radii from its centre) is seen at centre + scale * rotation(angle) * p, where the wave
    carries p to q: q_x = p_x + wave * sin(k * p_y + phase_x), then q_y = p_y + wave * sin(k * q_x + phase_y). Each of
    the two shears is undone exactly, so that flow is exact under deformation too.

    Args:
        picture: (n, n, 4) colours and opacity.
        centre: (T, 2) x and y in the frame.
        angle: (T,) radians, clockwise.
        scale: (T,) pixels per radius.
        wave: (T,) in radii; None for rigid sprites.
        phase: phase_x and phase_y of the wave.
    """

    picture: Bytes
    centre: Floats
    angle: Floats
    scale: Floats
    wave: Floats | None
    phase: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """All that a clip shows.

    Args:
        background: (h, w, 3), larger than the frame.
        corner: (T, 2) where the frame's first pixel lies on the background, x and y.
        sprites: from the farthest to the nearest.
    """

    background: Bytes
    corner: Floats
    sprites: tuple[Sprite, ...]


def draw_scene(rng: np.random.Generator, motion: Motion, look: Look, height: int, width: int, times: Floats) -> Scene:
    """Draw a scene whose objects move by `motion`.

    Args:
        times: (T,) in source frames, 0 at the middle of the clip.
    """
    unit = min(height, width) / REFERENCE_SIDE
    camera = _camera_path(rng, look.camera * unit, times)
    colour = rng.uniform(88, 168, 3)
    middle = np.array([width - 1, height - 1]) / 2 + rng.uniform(-0.1, 0.1, 2) * (width, height)
    ring = rng.uniform(12, 20) * unit
    bearing = rng.uniform(0, 2 * np.pi) + np.arange(look.objects) * (2 * np.pi / look.objects)
    places = ring * np.stack([np.cos(bearing), np.sin(bearing)], axis=1)
    pace = rng.uniform(0.7, 1.3) * look.speed * unit
    spread = np.exp(motion.spread * pace / ring * times)
    sprites = []
    for place in places:
        path = middle + place * spread[:, None] + times[:, None] * (motion.x * pace, motion.y * pace)
        sprites.append(_sprite(rng, motion, look, unit, path - camera, pace, colour, times))
    for _ in range(look.occluders):
        spot = rng.uniform(0, 1, 2) * (width, height)
        sprites.append(_sprite(rng, STILL, look, unit, spot - camera, pace, colour, times))
    background, origin = _background(rng, colour, look, unit, height, width, camera)
    return Scene(background, (camera - origin).astype(np.float32), tuple(sprites))


def _camera_path(rng: np.random.Generator, fastest: float, times: Floats) -> NDArray[np.float64]:
    """Return (T, 2) places of the camera: a pan whose velocity changes steadily from one draw to another."""
    radius = fastest * np.sqrt(rng.uniform(0, 1, (2, 1)))
    heading = rng.uniform(0, 2 * np.pi, (2, 1))
    first, last = radius * np.concatenate([np.cos(heading), np.sin(heading)], axis=1)
    duration = max(float(times[-1] - times[0]), 1.0)
    time = times.astype(np.float64)[:, None]
    path: NDArray[np.float64] = (first + last) / 2 * time + (last - first) / (2 * duration) * time**2
    return path


def _sprite(
    rng: np.random.Generator,
    motion: Motion,
    look: Look,
    unit: float,
    path: NDArray[np.float64],
    pace: float,
    behind: NDArray[np.float64],
    times: Floats,
) -> Sprite:
    """Draw one sprite; it turns with `pace` at its mean rim, and grows with less, for growth adds up."""
    radius = look.size * unit
    rate = pace / radius
    start_angle, phase_x, phase_y, phase = rng.uniform(0, 2 * np.pi, 4)
    scale = rng.uniform(0.8, 1.2) * radius * np.exp(motion.grow * 0.4 * rate * times)
    wave = None
    period = rng.uniform(8, 16)
    if look.non_rigid:
        wave = (look.non_rigid * np.sin(2 * np.pi / period * times + phase)).astype(np.float32)
    return Sprite(
        picture=_picture(rng, radius, behind, look.contrast),
        centre=path.astype(np.float32),
        angle=(start_angle + motion.turn * rate * times).astype(np.float32),
        scale=scale.astype(np.float32),
        wave=wave,
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


def _picture(rng: np.random.Generator, radius: float, behind: NDArray[np.float64], contrast: float) -> Bytes:
    """Draw a lobed shape: one colour unlike the background's, shaded from one side to the other."""
    side = int(np.ceil(2 * SPRITE_REACH * 1.25 * radius)) + 1
    x, y, waves = _lobes(side)
    lobes, depth, twist, light = rng.integers(0, 4), rng.uniform(0.15, 0.3), *rng.uniform(0, 2 * np.pi, 2)
    outline = 1 + depth * (np.cos(twist) * waves[lobes, 0] + np.sin(twist) * waves[lobes, 1])
    inside = outline / (1 + depth) - np.hypot(x, y)
    shade = np.cos(light) * x + np.sin(light) * y
    colour = behind + rng.choice((-1, 1), 3) * rng.uniform(60, 80, 3)
    tint = rng.choice((-1, 1), 3) * rng.uniform(0.5, 1, 3) * contrast
    picture = np.empty((side, side, 4), np.float32)
    picture[..., :3] = shade[..., None] * tint.astype(np.float32) + colour.astype(np.float32)
    picture[..., 3] = 255 * (inside * (side / (2 * SPRITE_REACH)) + 0.5)
    return _to_bytes(picture)


def _background(
    rng: np.random.Generator,
    colour: NDArray[np.float64],
    look: Look,
    unit: float,
    height: int,
    width: int,
    camera: NDArray[np.float64],
) -> tuple[Bytes, NDArray[np.float64]]:
    """Draw a smooth field of one tint, and return it with the place of its first pixel in the world."""
    origin = np.floor(camera.min(0)) - 2
    reach = np.ceil(camera.max(0)) + 3 - origin + (width, height)
    step = look.wavelength * unit / 2  # knots half a wave apart
    cols, rows = (int(np.ceil(length / step)) + 1 for length in reach)
    knots = rng.uniform(-1, 1, (rows, cols)).astype(np.float32)
    field = cv2.resize(knots, (int(cols * step), int(rows * step)), interpolation=cv2.INTER_CUBIC)
    field = field[: int(reach[1]), : int(reach[0])]
    tint = rng.choice((-1, 1), 3) * rng.uniform(0.5, 1, 3) * look.contrast
    picture = field[..., None] * tint.astype(np.float32) + colour.astype(np.float32)
    return _to_bytes(picture), origin


def _to_bytes(picture: Floats) -> Bytes:
    """Round to 0..255."""
    rounded: Bytes = cv2.convertScaleAbs(np.maximum(picture, 0, out=picture))
    return rounded
