"""Augmentation: one draw for all frames, from the passed generator alone, and labels that follow the pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mgmae_cli.downstream.augment import (
    Mixer,
    TrainTransform,
    draw_seed,
    global_seeds,
    policy_problem,
    rand_augment,
    random_erase,
)
from mgmae_cli.video.dataset import Cropper

POLICY = "rand-m7-n4-mstd0.5-inc1"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(frames: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Return smooth frames, each another."""
    noise = torch.rand(frames, 3, 4, 4, generator=generator(seed)) * 255
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_randaugment_treats_all_frames_alike() -> None:
    still = clip(1).repeat(4, 1, 1, 1)
    changed = 0
    for seed in range(20):
        made = rand_augment(still, POLICY, generator(seed))
        assert made.shape == still.shape
        assert made.dtype == torch.uint8
        assert all(torch.equal(frame, made[0]) for frame in made)
        changed += not torch.equal(made, still)
    assert changed >= 15


def test_randaugment_equals_timms_on_each_frame_under_the_same_seed() -> None:
    from timm.data.auto_augment import rand_augment_transform

    frames = clip()
    hparams = {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    transform = rand_augment_transform(POLICY, hparams)
    made = rand_augment(frames, POLICY, generator(7))
    seed = draw_seed(generator(7))
    for frame, ours in zip(frames, made):
        random.seed(seed)
        np.random.seed(seed)
        theirs = np.asarray(transform(Image.fromarray(frame.permute(1, 2, 0).numpy())))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), theirs)


def test_global_generators_are_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(()))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    rand_augment(clip(), POLICY, generator(0))
    random_erase(clip(), 1.0, generator(0))
    Mixer(0.8, 1.0, 1.0, 0.5, 0.1, 3)(torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), generator(0))
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_seeds_are_put_back_after_an_error() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    with pytest.raises(KeyError), global_seeds(5):
        raise KeyError
    assert random.random() == expected


@pytest.mark.parametrize("policy", ["m7-n4", "rand-q5", "rand-m7-n4-mstdx", "original"])
def test_a_policy_that_timm_does_not_know_is_told(policy: str) -> None:
    problem = policy_problem(policy)
    assert problem is not None
    assert "rand-m7-n4-mstd0.5-inc1" in problem
    assert policy_problem(POLICY) is None


def test_erasing_takes_one_box_through_all_frames_and_fills_it_with_new_noise() -> None:
    grey = torch.full((4, 3, 40, 48), 200, dtype=torch.uint8)
    erased = 0
    for seed in range(40):
        made = random_erase(grey, 0.5, generator(seed))
        hit = (made != 200).any(1)
        if not hit.any():
            assert torch.equal(made, grey)
            continue
        erased += 1
        rows, cols = hit.any(0).any(1).nonzero(), hit.any(0).any(0).nonzero()
        box = hit[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        assert box.float().mean() > 0.95  # noise may be 200 by chance
        assert hit.sum() == box.sum()
        assert 0.01 < box[0].numel() / (40 * 48) < 0.36
        assert not torch.equal(made[0], made[1])
    assert 10 <= erased <= 30
    assert (grey == 200).all()


def test_a_training_clip_depends_on_its_generator_alone() -> None:
    transform = TrainTransform(Cropper("random_resized", (24, 24), 0.5), POLICY, 0.5)
    frames = clip(size=40)
    made = [transform(frames, generator(seed)) for seed in (1, 1, 2)]
    assert made[0].shape == (3, 3, 24, 24)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def constant_clips() -> Tensor:
    """Return six clips, each of one value: 10, 50, ..., 210."""
    values = torch.arange(10, 220, 40, dtype=torch.uint8)
    return values[:, None, None, None, None].repeat(1, 3, 2, 20, 20)


def test_mixup_targets_follow_the_pixels() -> None:
    clips, labels = constant_clips(), torch.arange(6)
    for seed in range(10):
        mixed, targets = Mixer(0.8, 0.0, 1.0, 0.5, 0.0, 6)(clips, labels, generator(seed))
        assert mixed.shape == clips.shape
        assert torch.allclose(targets.sum(1), torch.ones(6))
        expected = targets @ clips[:, 0, 0, 0, 0].float()  # the mean of both values, weighted by the labels' shares
        assert torch.allclose(mixed, expected[:, None, None, None, None].expand_as(mixed), atol=1e-3)
    assert clips.unique().tolist() == [10, 50, 90, 130, 170, 210]


def test_cutmix_targets_are_the_shares_of_pixels_and_the_box_goes_through_time_and_colour() -> None:
    clips, labels = constant_clips(), torch.arange(6)
    cut = 0
    for seed in range(10):
        mixed, targets = Mixer(0.0, 1.0, 1.0, 0.5, 0.0, 6)(clips, labels, generator(seed))
        own = mixed == clips
        assert all(torch.equal(own[:, c, t], own[:, 0, 0]) for c in range(3) for t in range(2))
        assert torch.equal(torch.where(own, clips, clips.flip(0)).float(), mixed)
        shares = own.float().mean((1, 2, 3, 4))
        assert torch.allclose(targets.gather(1, labels[:, None])[:, 0], shares, atol=1e-6)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        cut += 0 < shares[0] < 1
    assert cut >= 5


def test_mixed_targets_with_smoothing_sum_to_one_and_are_drawn_from_the_generator() -> None:
    mixer = Mixer(0.8, 1.0, 1.0, 0.5, 0.1, 10)
    clips, labels = constant_clips(), torch.arange(6)
    first, again, other = (mixer(clips, labels, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.allclose(first[1].sum(1), torch.ones(6))
    assert (first[1] >= 0.1 / 10 - 1e-6).all()
