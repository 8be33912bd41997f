"""`shapes`: what its ground truth promises, and that nothing but the motion of the objects tells the class."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.interfaces import Clip, ClipRequest, DataLocation, TruthFlow
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.shapes import ShapesSource
from mgmae_cli.video.shapes_render import render, truth_flow
from mgmae_cli.video.shapes_scene import MOTIONS, SPRITE_REACH, Look, Motion, Scene, Sprite, draw_scene

SMOOTH = {
    "period": 48.0,
    "contrast": 25.0,
    "irregular": 1.0,
}  # patterns that lose nothing when they are sampled between pixels
HARD = {"non_rigid": 0.2, "occluders": 2, "objects": 3}


def source(**options: Any) -> ShapesSource:
    return ShapesSource(ShapesSource.Options(**options), DataLocation())


def request(
    frames: int = 6, size: tuple[int, int] = (64, 64), seed: int = 0, stride: int = 1, **more: Any
) -> ClipRequest:
    return ClipRequest(
        frames=frames, stride=stride, height=size[0], width=size[1], generator=derive_generator(seed), **more
    )


def load(index: int, frames: int = 6, **options: Any) -> Clip:
    return source(**options).load(index, request(frames, wants_truth=True))


def truth(clip: Clip) -> TruthFlow:
    assert clip.truth is not None
    return clip.truth


def scene_of(motion: Motion, seed: int = 0, frames: int = 9, **look: Any) -> tuple[Scene, Tensor, Tensor]:
    """Return a scene, its frames, and the layer of every pixel."""
    knobs = {name: getattr(ShapesSource.Options(), name) for name in Look.__dataclass_fields__} | look
    times = np.arange(frames, dtype=np.float32) - (frames - 1) / 2
    scene = draw_scene(np.random.default_rng(seed), motion, Look(**knobs), 64, 64, times)
    pictures, layers = render(scene, 64, 64)
    return scene, torch.from_numpy(pictures), torch.from_numpy(layers)


def places(flow: Tensor) -> Tensor:
    """Return (P, H, W, 2) where (P, 2, H, W) flow takes each pixel."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([x + flow[:, 0], y + flow[:, 1]], dim=-1)


def look_up(images: Tensor, at: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample (P, C, H, W) images at (P, H, W, 2) places."""
    size = torch.tensor([images.shape[3] - 1, images.shape[2] - 1])
    return F.grid_sample(images.float(), at / size * 2 - 1, mode=mode, padding_mode="border", align_corners=True)


def inside(layers: Tensor) -> Tensor:
    """Return (P, 1, H, W) float, 1 where a pixel and its eight neighbours show one layer: no blended colours."""
    planes = F.pad(layers[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(planes, 3, 1) == -F.max_pool2d(-planes, 3, 1)).float()


# --- ground truth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [{}, {"camera": 0.0}, {"size": 20.0, "non_rigid": 0.3}, HARD], ids=str)
@pytest.mark.parametrize("name", MOTIONS)
def test_flow_finds_every_unhidden_pixel_in_the_neighbouring_frame(name: str, look: dict[str, Any]) -> None:
    scene, pictures, layers = scene_of(MOTIONS[name], frames=6, **SMOOTH, **look)
    frames, flows = pictures.permute(0, 3, 1, 2).float(), truth_flow(scene, layers.numpy())
    first, second = np.s_[:-1], np.s_[1:]
    for target, known, flow, hidden in (
        (first, second, flows.forward[0], flows.occluded_forward[0]),
        (second, first, flows.backward[0], flows.occluded_backward[0]),
    ):

        def errors(flow: Tensor, target: Any = target, known: Any = known, hidden: Tensor = hidden) -> Tensor:
            at = places(flow)
            counted = inside(layers[target]) * look_up(inside(layers[known]), at) > 0.999
            return (look_up(frames[known], at) - frames[target]).abs().mean(dim=1)[counted[:, 0] & ~hidden]

        right = errors(flow)
        assert len(right) > 0.5 * hidden.numel()
        assert right.mean() < 0.6  # both frames are rounded to whole levels
        assert right.quantile(0.99) < 3  # bending widens some blended edges beyond the pixel left out here
        assert errors(-flow).mean() > 1.3 * right.mean(), "a flipped sign must show"
        if look.get("camera") != 0:
            assert errors(-flow).mean() > 2 * right.mean(), "a flipped sign must show"
            assert errors(flow.flip(1)).mean() > 2 * right.mean(), "swapped axes must show"


@pytest.mark.parametrize("options", [{}, HARD], ids=str)
def test_forward_and_backward_flow_cancel_where_nothing_is_hidden(options: dict[str, Any]) -> None:
    for index in range(len(MOTIONS)):
        flows = truth(load(index, **options))
        for flow, back, hidden in (
            (flows.forward[0], flows.backward[0], flows.occluded_forward[0]),
            (flows.backward[0], flows.forward[0], flows.occluded_backward[0]),
        ):
            # The nearest pixel's flow stands in for the flow between pixels: off by at most half a pixel's change.
            returned = look_up(back, places(flow), mode="nearest") + flow
            assert returned.abs().amax(dim=1)[~hidden].max() < 0.35
            assert returned.abs().amax(dim=1)[~hidden].mean() < 0.05


def test_flow_is_exact_on_a_turning_growing_bending_sprite() -> None:
    rng = np.random.default_rng(3)
    sprite = Sprite(
        picture=np.full((31, 31, 4), 255, np.uint8),
        centre=np.array([30 + 28j, 32.5 + 27.25j], np.complex64),
        pose=(np.array([12, 13]) * np.exp(1j * np.array([0.3, 0.5]))).astype(np.complex64),
        wave=np.array([0.1, -0.2], np.float32),
        phase=(0.7, 2.0),
    )
    scene = Scene(rng.integers(0, 255, (70, 70, 3)).astype(np.uint8), np.zeros(2, np.complex64), (sprite,))
    _, layers = render(scene, 64, 64)
    flow = truth_flow(scene, layers).forward[0, 0].numpy()

    def bent(shape_x: float, shape_y: float, frame: int) -> complex:
        """Where a point of the unbent shape is seen: solve the two waves by search instead of in closed form."""
        point = complex(shape_x, shape_y)
        wave, guess = float(sprite.wave[frame]), complex(shape_x, shape_y)
        for _ in range(200):  # a fixed point of the forward waves
            x = guess.real + wave * np.sin(2 * guess.imag + 0.7)
            y = guess.imag + wave * np.sin(2 * x + 2.0)
            guess += 0.5 * (point - complex(x, y))
        return complex(sprite.centre[frame] + sprite.pose[frame] * guess)

    checked = 0
    for x, y in rng.uniform(-0.7, 0.7, (40, 2)):
        here, there = bent(x, y, 0), bent(x, y, 1)
        col, row = here.real, here.imag
        left, top = int(col), int(row)
        corners = flow[:, top : top + 2, left : left + 2]
        across, down = col - left, row - top
        weights = np.outer([1 - down, down], [1 - across, across])
        between = (corners * weights).sum(axis=(1, 2))
        if (layers[0, top : top + 2, left : left + 2] == 1).all():
            np.testing.assert_allclose(between, [there.real - col, there.imag - row], atol=0.02)
            checked += 1
    assert checked > 30


def square(side: int, path: list[complex]) -> Sprite:
    """Return an opaque square of `side` pixels (odd) that stands upright on whole pixels."""
    radius = (side - 1) / 2 / SPRITE_REACH  # so that one pixel of the picture is one pixel of the frame
    return Sprite(
        picture=np.full((side, side, 4), 255, np.uint8),
        centre=np.array(path, np.complex64),
        pose=np.full(len(path), radius, np.complex64),
        wave=None,
        phase=(0.0, 0.0),
    )


def test_occlusion_equals_a_z_buffer_drawn_pixel_by_pixel() -> None:
    side, size = 7, 24
    paths = {1: [6 + 8j, 9 + 8j, 12 + 8j], 2: [14 + 10j, 12 + 10j, 10 + 11j]}  # 2 is nearer than 1; they cross
    camera = [2 + 2j, 3 + 2j, 5 + 3j]
    scene = Scene(
        np.zeros((40, 40, 3), np.uint8), np.array(camera, np.complex64), tuple(square(side, p) for p in paths.values())
    )
    _, layers = render(scene, size, size)
    flows = truth_flow(scene, layers)

    def shown(frame: int, x: int, y: int) -> int:
        if not (0 <= x < size and 0 <= y < size):
            return -1
        for layer in (2, 1):
            centre = paths[layer][frame]
            if max(abs(x - centre.real), abs(y - centre.imag)) <= side // 2:
                return layer
        return 0

    def moved(layer: int, source: int, target: int) -> complex:
        return paths[layer][target] - paths[layer][source] if layer else camera[source] - camera[target]

    hidden_seen = 0
    for first, second in pairwise(range(3)):
        for source_, target, flow, hidden in (
            (first, second, flows.forward[0, first], flows.occluded_forward[0, first]),
            (second, first, flows.backward[0, first], flows.occluded_backward[0, first]),
        ):
            for y in range(size):
                for x in range(size):
                    layer = shown(source_, x, y)
                    assert layers[source_, y, x] == layer
                    step = moved(layer, source_, target)
                    assert flow[:, y, x].tolist() == [step.real, step.imag]
                    gone = shown(target, x + int(step.real), y + int(step.imag)) != layer
                    assert bool(hidden[y, x]) == gone
                    hidden_seen += gone
    assert hidden_seen > 50


# --- classes ------------------------------------------------------------------------------------------------------


def object_motion(motion: Motion, seed: int, **look: Any) -> dict[str, float]:
    """Measure, from truth flow alone, how the objects move over the background: mean pixels a frame of each kind."""
    scene, _, layers = scene_of(motion, seed, **look)
    forward = truth_flow(scene, layers.numpy()).forward[0]
    sums: dict[str, list[float]] = {kind: [] for kind in ("x", "y", "turn", "grow", "spread")}
    for flow, layer in zip(forward, layers):
        camera = flow[:, layer == 0].median(dim=1).values
        centres, drifts = [], []
        for number in range(1, len(scene.sprites) + 1):
            row, col = (layer == number).nonzero(as_tuple=True)
            if len(row) < 40:
                continue
            place = torch.stack([col, row]).float()
            move = flow[:, row, col] - camera[:, None]
            centre, drift = place.mean(dim=1), move.mean(dim=1)
            arm = torch.complex(*(place - centre[:, None]))
            moved = torch.complex(*(place + move - centre[:, None] - drift[:, None]))
            # The best z with moved = z * arm. Its logarithm tells turn from growth; the step itself doesn't, for a
            # chord of a turn points a little inwards.
            rate = ((arm.conj() * moved).sum() / arm.abs().square().sum()).log()
            length = float(arm.abs().mean())
            sums["turn"].append(float(rate.imag) * length)
            sums["grow"].append(float(rate.real) * length)
            sums["x"].append(float(drift[0]))
            sums["y"].append(float(drift[1]))
            centres.append(centre)
            drifts.append(drift)
        if len(centres) == 2:
            apart = centres[1] - centres[0]
            sums["spread"].append(float((apart * (drifts[1] - drifts[0])).sum() / apart.norm()) / 2)
    return {kind: float(np.mean(values)) for kind, values in sums.items() if values}


@pytest.mark.parametrize("name", MOTIONS)
def test_objects_move_over_the_background_as_their_class_says(name: str) -> None:
    motion = MOTIONS[name]
    means: dict[str, list[float]] = {}
    for seed in range(6):
        for kind, value in object_motion(motion, seed).items():
            means.setdefault(kind, []).append(value)
    wanted = {kind: getattr(motion, kind) for kind in ("x", "y", "turn", "grow", "spread")}
    assert sum(abs(value) for value in wanted.values()) == 1
    for kind, sign in wanted.items():
        value = float(np.mean(means[kind]))
        if sign:
            assert value * sign > (0.25 if kind == "grow" else 0.6), (kind, means)
        else:
            assert abs(value) < 0.12, (kind, means)


def test_class_names_mean_what_they_say_on_the_screen() -> None:
    """A point at the top of a clockwise object moves right; an approaching object gets larger."""
    scene, _, layers = scene_of(MOTIONS["clockwise"], camera=0.0)
    flow = truth_flow(scene, layers.numpy()).forward[0, 0]
    row, col = (layers[0] == 1).nonzero(as_tuple=True)
    assert flow[0, row.min(), col[row.argmin()]] > 0.3
    _, _, layers = scene_of(MOTIONS["approach"], camera=0.0)
    assert (layers[-1] > 0).sum() > 1.3 * (layers[0] > 0).sum()


def test_clips_that_differ_only_in_class_share_their_middle_frame_and_their_camera() -> None:
    for seed in range(3):
        scenes = [scene_of(motion, seed, occluders=1, non_rigid=0.1) for motion in MOTIONS.values()]
        first, frames, _ = scenes[0]
        for scene, others, _ in scenes[1:]:
            assert torch.equal(others[4], frames[4])
            assert np.array_equal(scene.corner, first.corner)
            assert np.array_equal(scene.background, first.background)
            assert not torch.equal(others[0], frames[0])


def test_camera_and_colours_are_distributed_alike_in_all_classes() -> None:
    shapes = source()
    pans: dict[int, list[Tensor]] = {label: [] for label in range(len(shapes.classes))}
    colours: dict[int, list[Tensor]] = {label: [] for label in pans}
    for index in range(400):
        clip = shapes.load(index, request(2, wants_truth=True))
        assert clip.label is not None
        pans[clip.label].append(truth(clip).forward[0, 0].flatten(1).median(dim=1).values)
        colours[clip.label].append(clip.frames.float().mean(dim=(0, 2, 3)))
    for values, spread in ((pans, 1.3), (colours, 25.0)):
        means = torch.stack([torch.stack(list(group)).mean(dim=0) for group in values.values()])
        assert (means - means.mean(dim=0)).abs().max() < 3.5 * spread / 40**0.5  # within chance of 40 clips a class


def test_classes_take_turns_and_one_object_can_neither_part_nor_meet() -> None:
    shapes = source(clips=40)
    assert list(shapes.classes) == list(MOTIONS)
    assert len(shapes.classes) >= 8
    counts = np.bincount([shapes.label(index) for index in range(40)])
    assert counts.tolist() == [4] * 10
    assert shapes.load(7, request()).label == shapes.label(7)
    lone = source(objects=1)
    assert list(lone.classes) == [name for name in MOTIONS if name not in ("part", "meet")]
    assert {lone.label(index) for index in range(50)} == set(range(8))


# --- determinism --------------------------------------------------------------------------------------------------


def test_a_clip_depends_on_its_index_and_the_options_alone() -> None:
    shapes = source(clips=50)
    once = shapes.load(17, request(seed=1))
    shapes.load(3, request(seed=2))
    copy = pickle.loads(pickle.dumps(shapes))
    for other in (shapes.load(17, request(seed=9)), copy.load(17, request()), source(clips=99).load(17, request())):
        assert torch.equal(once.frames, other.frames)
        assert once.label == other.label
    with_truth = shapes.load(17, request(wants_truth=True))
    assert torch.equal(once.frames, with_truth.frames)
    assert once.truth is None
    assert with_truth.truth is not None


def test_splits_seeds_and_indices_share_no_clip() -> None:
    clips = [
        source(split=split, seed=seed).load(index, request(2)).frames.numpy().tobytes()
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for index in (0, 10, 20)
    ]
    assert len(set(clips)) == len(clips)


def test_fresh_clips_change_with_the_generator_and_keep_their_label() -> None:
    shapes = source(fresh=True)
    first, again, other = (shapes.load(5, request(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert first.label == other.label == shapes.label(5) == 5


# --- the request and the knobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "size"), [(16, (64, 64)), (1, (32, 32)), (5, (48, 80)), (4, (224, 160))])
def test_clips_have_the_size_that_was_asked_for(frames: int, size: tuple[int, int]) -> None:
    clip = source(**HARD).load(3, request(frames, size, min_frames=1, wants_truth=True))
    assert clip.frames.shape == (frames, 3, *size)
    assert clip.frames.dtype == torch.uint8
    assert clip.frames.is_contiguous()
    flows = truth(clip)
    assert flows.forward.shape == flows.backward.shape == (1, frames - 1, 2, *size)
    assert flows.occluded_forward.shape == flows.occluded_backward.shape == (1, frames - 1, *size)
    assert flows.forward.dtype == torch.float32
    assert flows.occluded_forward.dtype == torch.bool


def test_a_larger_frame_shows_the_same_scene_scaled() -> None:
    small, large = (source().load(2, request(6, (size, size), wants_truth=True)) for size in (64, 128))
    shrunk = F.avg_pool2d(large.frames.float(), 2)
    assert (shrunk - small.frames.float()).abs().mean() < 4
    ratio = truth(large).forward.abs().mean() / truth(small).forward.abs().mean()
    assert ratio == pytest.approx(2, rel=0.05)


def test_stride_makes_motion_faster() -> None:
    slow = source(camera=0).load(1, request(2, stride=1, wants_truth=True))
    fast = source(camera=0).load(1, request(2, stride=3, wants_truth=True))
    assert truth(fast).forward.abs().max() == pytest.approx(3 * float(truth(slow).forward.abs().max()), rel=0.01)


def moving_share(clip: Clip) -> float:
    """Return the share of pixels that move unlike the background."""
    flow = truth(clip).forward[0]
    camera = flow.flatten(2).median(dim=2).values[:, :, None, None]
    return float(((flow - camera).abs().amax(dim=1) > 0.05).float().mean())


def fastest_object(clip: Clip) -> float:
    flow = truth(clip).forward[0]
    return float((flow - flow.flatten(2).median(dim=2).values[:, :, None, None]).abs().max())


def hidden_share(clip: Clip) -> float:
    """Return the share of pixels that the next frame hides, away from the frame's edge."""
    return float(truth(clip).occluded_forward[0, :, 8:-8, 8:-8].float().mean())


def bending(clip: Clip) -> float:
    """Return how much flow changes between neighbouring pixels of one object; nothing for objects that only shift."""
    flow = truth(clip).forward[0]
    change = (flow[..., 1:] - flow[..., :-1]).norm(dim=1)
    return float(change[change < 0.5].mean())


def camera_speed(clip: Clip) -> float:
    return float(truth(clip).forward[0].flatten(2).median(dim=2).values.norm(dim=1).max())


def roughness(clip: Clip) -> float:
    """Return the mean difference of pixels that are two apart."""
    frames = clip.frames.float()
    return float((frames[..., 2:] - frames[..., :-2]).abs().mean())


def oddness(clip: Clip) -> float:
    """Return the mean difference of pixels that are one period apart."""
    frames = clip.frames.float()
    return float((frames[..., 8:] - frames[..., :-8]).abs().mean())


@pytest.mark.parametrize(
    ("knob", "low", "high", "measure", "factor"),
    [
        ("objects", 1, 4, moving_share, 2),
        ("speed", 1.0, 2.0, fastest_object, 1.9),
        ("size", 6.0, 12.0, moving_share, 2.5),
        ("occluders", 0, 6, hidden_share, 1.1),
        ("non_rigid", 0.0, 0.2, bending, 10),
        ("camera", 0.5, 2.5, camera_speed, 4.9),
        ("period", 32.0, 8.0, roughness, 1.5),
        ("contrast", 15.0, 60.0, roughness, 2.5),
        ("irregular", 0.0, 2.0, oddness, 2.0),
    ],
)
def test_every_knob_has_its_effect(knob: str, low: float, high: float, measure: Any, factor: float) -> None:
    figures = []
    for value in (low, high):
        shapes = source(**{knob: value})
        indices = [
            index for index in range(16) if shapes.classes[shapes.label(index)] in ("left", "right", "up", "down")
        ]
        figures.append(sum(measure(shapes.load(index, request(6, wants_truth=True))) for index in indices))
    assert figures[1] >= factor * figures[0]


def test_camera_and_speed_stay_within_their_knobs() -> None:
    shapes = source(camera=2.0, speed=1.5)
    for index in range(20):
        clip = shapes.load(index, request(16, wants_truth=True))
        assert camera_speed(clip) <= 2.0 + 1e-4
        if shapes.classes[shapes.label(index)] in ("left", "right", "up", "down"):
            assert fastest_object(clip) <= 1.5 * 1.3 + 1e-3


def test_names_and_length_are_those_of_the_set() -> None:
    shapes = source(clips=20, split="test")
    assert len(shapes) == 20
    assert shapes.clip_name(17) == shapes.load(17, request()).name == "shapes:test:17"
    with pytest.raises(IndexError, match="the set has 20 clips"):
        shapes.load(20, request())


def test_a_request_with_too_few_frames_is_unreadable() -> None:
    with pytest.raises(UnreadableClip, match=r"length 1, below data\.min_frames = 2"):
        source().load(0, request(1))
