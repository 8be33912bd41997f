"""The loader: order, samples, replacements and batches, on a source whose pixels say which video they are."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from torch import Tensor

from mgmae_cli.errors import DataError, MgmaeError, PluginError, UnreadableClip
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, DataLocation, PluginOptions, TruthFlow
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.random import RandomMask
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.motion.truth import TruthFlowEstimator
from mgmae_cli.video.dataset import ClipDataset, ClipSpec, Cropper
from mgmae_cli.video.loader import Batch, DataOrder, auto_workers, batches, make_loader

FRAMES, SIDE = 4, 16
GRID = ClipGrid(FRAMES, SIDE, SIDE, 2, 8)


class Numbers(ClipSource):
    """Every pixel of video v is v, apart from a noise of its place in time in the first row."""

    name = "numbers"

    def __init__(self, videos: int, bad: frozenset[int] = frozenset(), returns: Any = None) -> None:
        super().__init__(PluginOptions(), DataLocation())
        self.videos, self.bad, self.returns = videos, bad, returns

    def __len__(self) -> int:
        return self.videos

    def clip_name(self, index: int) -> str:
        return f"video {index}"

    def load(self, index: int, request: ClipRequest) -> Clip:
        if index in self.bad:
            raise UnreadableClip(self.clip_name(index), "broken")
        if isinstance(self.returns, Exception):
            raise self.returns
        if self.returns is not None:
            return self.returns  # type: ignore[no-any-return]
        frames = torch.full((request.frames, 3, 24, 24), index, dtype=torch.uint8)
        frames[:, :, 0] = torch.randint(256, (24,), generator=request.generator, dtype=torch.uint8)
        truth = None
        if request.wants_truth:
            flow, hidden = torch.full((1, FRAMES - 1, 2, 24, 24), float(index)), torch.zeros(1, FRAMES - 1, 24, 24)
            truth = TruthFlow(flow, -flow, hidden.bool(), hidden.bool())
        return Clip(frames, self.clip_name(index), index % 3 if index else None, truth)


def _dataset(source: ClipSource, repeats: int = 1, masker: Masker | None = None, replace_bad: bool = True) -> Any:
    spec = ClipSpec(FRAMES, 1, SIDE, SIDE, crop=Cropper("multi_scale", (SIDE, SIDE)), repeats=repeats)
    return ClipDataset(source, spec, seed=5, masker=masker, replace_bad=replace_bad)


def _masker() -> Masker:
    return Masker(RandomMask(None), None, GRID, 0.5)


def _run(dataset: ClipDataset, order: DataOrder, workers: int = 0) -> list[Batch]:
    return list(batches(make_loader(dataset, order, workers, pin=False)))


def _equal(one: Batch, two: Batch) -> bool:
    assert one.masks is not None
    assert two.masks is not None
    return (
        torch.equal(one.clips, two.clips)
        and torch.equal(one.masks, two.masks)
        and torch.equal(one.labels, two.labels)
        and (one.names, one.bad) == (two.names, two.bad)
    )


# --- order --------------------------------------------------------------------------------------------------------


def test_each_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    keys = [key for batch in DataOrder(videos=10, per_batch=4, start=0, stop=10, seed=1) for key in batch]
    epochs = [[video for epoch, video in keys if epoch == number] for number in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)


def test_another_seed_gives_another_order_and_no_shuffling_the_listed_one() -> None:
    def first(seed: int, shuffle: bool = True) -> list[int]:
        return [video for _, video in next(iter(DataOrder(20, 20, 0, 1, seed, shuffle=shuffle)))]

    assert first(1) == first(1) != first(2)
    assert first(1, shuffle=False) == list(range(20))


def test_a_batch_may_be_larger_than_the_set() -> None:
    (keys,) = DataOrder(videos=3, per_batch=8, start=0, stop=1, seed=0)
    assert [epoch for epoch, _ in keys] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert {video for epoch, video in keys if epoch == 1} == {0, 1, 2}


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_batches_of_all_ranks_together_are_those_of_one_rank_with_larger_batches(ranks: int) -> None:
    alone = list(DataOrder(videos=7, per_batch=2 * ranks, start=0, stop=6, seed=3))
    shared = [list(DataOrder(7, 2, 0, 6, 3, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert [[key for rank in shared for key in rank[number]] for number in range(6)] == alone


def test_an_order_taken_up_in_the_middle_goes_on_as_if_never_left() -> None:
    whole = list(DataOrder(videos=7, per_batch=3, start=0, stop=9, seed=3))
    rest = DataOrder(videos=7, per_batch=3, start=4, stop=9, seed=3)
    assert list(rest) == whole[4:]
    assert len(rest) == 5


# --- samples ------------------------------------------------------------------------------------------------------


def test_batches_are_the_same_with_and_without_workers() -> None:
    dataset = _dataset(Numbers(9, bad=frozenset({2, 5})), repeats=2, masker=_masker())
    order = DataOrder(9, 2, 0, 8, seed=5)
    alone, helped = _run(dataset, order), _run(dataset, order, workers=2)
    assert len(alone) == len(helped) == 8
    assert all(_equal(one, two) for one, two in zip(alone, helped))


def test_a_sample_does_not_depend_on_what_was_read_before() -> None:
    dataset, fresh = (_dataset(Numbers(9, bad=frozenset({2, 5})), masker=_masker()) for _ in range(2))
    _run(dataset, DataOrder(9, 3, 0, 6, seed=5))
    late = DataOrder(9, 3, 6, 9, seed=5)
    assert all(_equal(one, two) for one, two in zip(_run(dataset, late), _run(fresh, late)))


def test_a_video_gives_another_clip_each_epoch_and_the_same_again_in_the_same_epoch() -> None:
    dataset = _dataset(Numbers(3), masker=_masker())
    assert torch.equal(dataset[0, 1].clips, dataset[0, 1].clips)
    assert not torch.equal(dataset[0, 1].masks, dataset[1, 1].masks)
    drawn = [dataset[epoch, 1].clips for epoch in range(6)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_batches_hold_what_the_source_gave_with_time_after_colour() -> None:
    (batch,) = _run(_dataset(Numbers(4)), DataOrder(4, 4, 0, 1, seed=5))
    assert batch.clips.shape == (4, 3, FRAMES, SIDE, SIDE)
    assert batch.clips.dtype == torch.uint8
    videos = batch.clips[:, 0, 0, -1, -1].tolist()
    assert batch.names == [f"video {video}" for video in videos]
    assert batch.labels.tolist() == [-1 if video == 0 else video % 3 for video in videos]
    assert sorted(videos) == [0, 1, 2, 3]
    assert batch.masks is None


def test_repeated_samples_follow_one_another_with_their_own_crops_and_masks() -> None:
    masker = _masker()
    batch = _run(_dataset(Numbers(6), repeats=3, masker=masker), DataOrder(6, 2, 0, 1, seed=5))[0]
    assert len(batch.names) == 6
    assert len(set(batch.names[:3])) == len(set(batch.names[3:])) == 1
    assert batch.names[0] != batch.names[3]
    assert batch.labels[:3].unique().numel() == 1
    assert batch.masks is not None
    assert batch.masks.shape == (6, GRID.tokens)
    assert (~batch.masks).sum(1).tolist() == [masker.visible_tokens] * 6
    assert not torch.equal(batch.masks[0], batch.masks[1])


def test_a_mask_that_is_drawn_on_the_device_is_left_to_it() -> None:
    class OnDevice(TubeMask):
        runs_on = "device"

    masker = Masker(OnDevice(None), None, GRID, 0.5)
    assert _run(_dataset(Numbers(4), masker=masker), DataOrder(4, 2, 0, 1, seed=5))[0].masks is None


def _truth_batch(keeps_frames: bool) -> Batch:
    class NeedsTruthOnDevice(TubeMask):
        runs_on = "device"

    masker = Masker(NeedsTruthOnDevice(None), TruthFlowEstimator(PluginOptions()), GRID, 0.5)
    spec = ClipSpec(FRAMES, 1, 24, 24, crop=Cropper("none", (24, 24)), repeats=2, keeps_frames=keeps_frames)
    return _run(ClipDataset(Numbers(6), spec, 5, masker), DataOrder(6, 2, 0, 1, seed=5))[0]


def test_exact_flow_travels_with_its_clips_where_the_crop_keeps_the_frames() -> None:
    batch = _truth_batch(keeps_frames=True)
    assert batch.truth is not None
    assert batch.truth.forward.shape == (4, FRAMES - 1, 2, 24, 24)
    assert batch.truth.forward[:, 0, 0, 0, 0].tolist() == batch.clips[:, 0, 0, -1, -1].float().tolist()
    moved = batch.to(torch.device("cpu"))
    assert moved.truth is not None
    assert torch.equal(moved.truth.backward, -batch.truth.forward)
    assert _truth_batch(keeps_frames=False).truth is None


def test_exact_flow_is_asked_for_only_by_those_who_use_it() -> None:
    asked = []

    class Asked(Numbers):
        def load(self, index: int, request: ClipRequest) -> Clip:
            asked.append(request.wants_truth)
            return super().load(index, request)

    _dataset(Asked(3), masker=_masker())[0, 0]
    _dataset(Asked(3), masker=Masker(TubeMask(None), TruthFlowEstimator(PluginOptions()), GRID, 0.5))[0, 0]
    assert asked == [False, True]


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_unreadable_videos_are_replaced_by_the_same_ones_each_time_and_reported() -> None:
    source = Numbers(8, bad=frozenset({1, 4, 6}))
    first, second = (_run(_dataset(source, masker=_masker()), DataOrder(8, 4, 0, 4, seed=5)) for _ in range(2))
    assert all(_equal(one, two) for one, two in zip(first, second))
    names = [name for batch in first for name in batch.names]
    assert len(names) == 16
    assert not {"video 1", "video 4", "video 6"} & set(names)
    reported = [bad for batch in first for bad in batch.bad]
    assert set(reported) == {("video 1", "broken"), ("video 4", "broken"), ("video 6", "broken")}


def test_a_replacement_that_is_unreadable_too_is_replaced_and_both_are_reported() -> None:
    dataset = _dataset(Numbers(6, bad=frozenset(range(5))))
    sample = next(sample for epoch in range(20) if len((sample := dataset[epoch, 0]).bad) > 1)
    assert sample.name == "video 5"
    assert sample.bad[0] == ("video 0", "broken")


def test_a_source_without_any_readable_video_ends_in_one_line() -> None:
    with pytest.raises(DataError, match=r"^21 videos in a row can't be read; the last: video \d: broken$"):
        _run(_dataset(Numbers(3, bad=frozenset(range(3)))), DataOrder(3, 1, 0, 1, seed=5))


def test_testing_does_not_replace_unreadable_videos() -> None:
    dataset = _dataset(Numbers(3, bad=frozenset({1})), replace_bad=False)
    with pytest.raises(UnreadableClip, match=r"^video 1: broken$"):
        _run(dataset, DataOrder(3, 3, 0, 1, seed=5, shuffle=False))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error", [PluginError("flow 'x' is wrong"), UnreadableClip("a", "b"), MgmaeError("own")], ids=lambda e: str(e)
)
def test_an_error_for_the_user_arrives_from_a_worker_as_itself(error: MgmaeError, workers: int) -> None:
    dataset = _dataset(Numbers(3, returns=error), replace_bad=False)
    with pytest.raises(type(error)) as caught:
        _run(dataset, DataOrder(3, 1, 0, 2, seed=5), workers)
    assert str(caught.value) == str(error)
    assert type(caught.value) is type(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_plugin_keeps_its_kind_and_its_traceback(workers: int) -> None:
    dataset = _dataset(Numbers(3, returns=RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch") as caught:
        _run(dataset, DataOrder(3, 1, 0, 2, seed=5), workers)
    assert not isinstance(caught.value, MgmaeError)
    if workers:
        assert "in load" in str(caught.value)


class _Dying(Numbers):
    def load(self, index: int, request: ClipRequest) -> Clip:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_the_death_of_a_worker_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"^a loader process died .* --workers 0 shows which video it is$") as caught:
        _run(_dataset(_Dying(3)), DataOrder(3, 1, 0, 2, seed=5), workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (Clip(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), "x"), r"frames \(3, 3, 8, 8\) torch.uint8"),
        (Clip(torch.zeros(4, 3, 8, 8), "x"), r"frames \(4, 3, 8, 8\) torch.float32"),
        (Clip("pixels", "x"), "frames str"),  # type: ignore[arg-type]
        ("a clip", "str"),
    ],
)
def test_a_source_that_returns_the_wrong_thing_is_named(returned: object, found: str) -> None:
    with pytest.raises(
        PluginError,
        match=rf"^clip source 'numbers' returned {found} for video \d; "
        r"expected a Clip with frames \(4, 3, h, w\) torch.uint8$",
    ):
        _run(_dataset(Numbers(3, returns=returned)), DataOrder(3, 1, 0, 1, seed=5))


def test_frames_that_the_crop_can_not_take_are_named_with_their_video() -> None:
    spec = ClipSpec(FRAMES, 1, SIDE, SIDE, crop=Cropper("none", (SIDE, SIDE)))
    with pytest.raises(DataError, match=r"^video \d: data.crop = none: frames are 24 x 24"):
        _run(ClipDataset(Numbers(3), spec, seed=5), DataOrder(3, 1, 0, 1, seed=5))


# --- processes ----------------------------------------------------------------------------------------------------


class _Processes(Numbers):
    """Tells in the clip's name which process read it, with how many threads, and survives signals to the group."""

    def load(self, index: int, request: ClipRequest) -> Clip:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        clip = super().load(index, request)
        return Clip(clip.frames, f"{os.getpid()} {torch.get_num_threads()}")


def test_workers_use_one_thread_each_and_outlive_signals_to_the_whole_group() -> None:
    read = _run(_dataset(_Processes(8)), DataOrder(8, 1, 0, 8, seed=5), workers=2)
    processes = {name.split()[0] for batch in read for name in batch.names}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert {name.split()[1] for batch in read for name in batch.names} == {"1"}


def test_leaving_early_ends_the_workers() -> None:
    stream = batches(make_loader(_dataset(_Waiting(8)), DataOrder(8, 1, 0, 8, seed=5), 2, pin=False))
    pids = {int(name) for name in next(stream).names}
    stream.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class _Waiting(Numbers):
    def load(self, index: int, request: ClipRequest) -> Clip:
        return Clip(super().load(index, request).frames, str(os.getpid()))


def test_reading_leaves_the_global_generator_of_the_main_process_alone() -> None:
    before: Tensor = torch.get_rng_state()
    for workers in (0, 1):
        _run(_dataset(Numbers(4), masker=_masker()), DataOrder(4, 2, 0, 2, seed=5), workers)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_are_as_many_as_the_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")

    def counts(cores: int, local_ranks: int) -> tuple[int, int]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        return auto_workers(cpu, local_ranks), auto_workers(gpu, local_ranks)

    assert counts(1, 1) == (1, 1)
    assert counts(8, 1) == (2, 7)
    assert counts(64, 8) == (2, 7)
    assert counts(64, 1) == (16, 16)
