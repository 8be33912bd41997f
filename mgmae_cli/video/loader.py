"""From samples to batches on their way to the device: the order of the data, and the processes that read it.

The data order is a pure function of (seed, position): position p is video `order(seed, p // n)[p % n]` of epoch p // n.
So batches depend neither on the number of workers nor of ranks, and a resumed run goes on exactly where it stopped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mgmae_cli.errors import DataError, MgmaeError
from mgmae_cli.interfaces import TruthFlow
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.dataset import ClipDataset, Key, Sample

_ORDER = 4  # what a derived generator is for; other numbers are the samples'
_SECONDS_TO_SAVE = 60


@dataclass
class Batch:
    """A batch on its way to the device.

    Args:
        clips: (B, 3, T, H, W) uint8.
        names: what each clip is called; repeated samples follow one another.
        labels: (B,) long, -1 where unknown.
        masks: (B, N) bool, or None where they are drawn on the device.
        truth: exact flow, where it is needed on the device.
        bad: (name, reason) of unreadable videos met.
        seconds: what the loader took to make it, over all its processes.
        mask_seconds: the part of them that masks and flow took.
    """

    clips: Tensor
    names: list[str]
    labels: Tensor
    masks: Tensor | None = None
    truth: TruthFlow | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    mask_seconds: float = 0.0

    def pin_memory(self) -> Batch:
        """Pin what travels to a GPU; called by the DataLoader."""
        self.clips = self.clips.pin_memory()
        self.masks = None if self.masks is None else self.masks.pin_memory()
        return self

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; copies from pinned memory do not wait."""
        return replace(
            self,
            clips=self.clips.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=True),
            truth=None if self.truth is None else self.truth.to(device),
        )


def collate(samples: Sequence[Sample | MgmaeError]) -> Batch | MgmaeError:
    """Join samples into a batch; the first error takes its place."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, MgmaeError):
            return sample
        good.append(sample)
    repeats = good[0].clips.shape[0]
    masks = [sample.masks for sample in good if sample.masks is not None]
    truths = [sample.truth for sample in good if sample.truth is not None for _ in range(repeats)]
    return Batch(
        clips=torch.cat([sample.clips for sample in good]),
        names=[sample.name for sample in good for _ in range(repeats)],
        labels=torch.tensor([-1 if sample.label is None else sample.label for sample in good for _ in range(repeats)]),
        masks=torch.cat(masks) if masks else None,
        truth=TruthFlow.stack(truths) if truths and not masks else None,
        bad=[bad for sample in good for bad in sample.bad],
        seconds=sum(sample.seconds for sample in good),
        mask_seconds=sum(sample.mask_seconds for sample in good),
    )


@dataclass(frozen=True)
class DataOrder(Sampler[list[Key]]):
    """Yields, for each batch of this rank, its (epoch, video) keys: a pure function of the seed and the position.

    Args:
        videos: number of videos.
        per_batch: videos of one batch.
        start, stop: first batch and the one to stop before, counted on this rank.
        rank, ranks: this process's place among all.
        shuffle: draw a new order each epoch; otherwise as listed.
    """

    videos: int
    per_batch: int
    start: int
    stop: int
    seed: int
    rank: int = 0
    ranks: int = 1
    shuffle: bool = True

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch_known, order = -1, torch.arange(self.videos)
        for batch in range(self.start, self.stop):
            first = (batch * self.ranks + self.rank) * self.per_batch
            keys = []
            for position in range(first, first + self.per_batch):
                epoch, place = divmod(position, self.videos)
                if self.shuffle and epoch != epoch_known:
                    order = torch.randperm(self.videos, generator=derive_generator(self.seed, epoch, _ORDER))
                    epoch_known = epoch
                keys.append((epoch, int(order[place])))
            yield keys


def make_loader(dataset: ClipDataset, order: DataOrder, workers: int, pin: bool) -> DataLoader[Sample | MgmaeError]:
    """Return a DataLoader of `Batch`es (or of an MgmaeError in a batch's place; see `batches`)."""
    extra: dict[str, Any] = {"prefetch_factor": 4, "persistent_workers": False} if workers else {}
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # or else it would draw from torch's global one, and a resumed run would differ
        **extra,
    )


def batches(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """Yield a loader's batches: `Batch`es in training.

    Raises:
        MgmaeError: what a worker met, as it met it.
        DataError: a worker process died.
    """
    with _one_opencv_thread(loader.num_workers > 0):
        iterator = iter(loader)  # starts the workers
    try:
        while True:
            with lost_workers():
                batch = next(iterator, None)
            if batch is None:
                return
            if isinstance(batch, MgmaeError):
                raise batch
            yield batch
    finally:
        del iterator  # ends the workers


@contextmanager
def lost_workers() -> Iterator[None]:
    """Say in one line what the death of a worker process may mean.

    torch tells of it by a RuntimeError from a signal handler: between batches, too.

    Raises:
        DataError: a worker process died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # what a worker raised, and we did not expect, passes as it is
            raise
        raise DataError(
            f"a loader process died ({' '.join(str(error).split())}); a video may crash the decoder, or memory (or "
            "/dev/shm) may be short: --workers 0 shows which video it is"
        ) from error


def auto_workers(device: torch.device, local_ranks: int = 1) -> int:
    """Return how many loader processes suit this machine: on a GPU machine a rank's share of the cores, on the CPU,
    where the training itself wants the cores, a quarter of that.

    Args:
        local_ranks: ranks on this machine that share the cores this process may use.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // local_ranks
    if device.type == "cpu":
        return max(1, share // 4)
    return max(1, min(16, share - 1))


@contextmanager
def _one_opencv_thread(wanted: bool) -> Iterator[None]:
    """Take OpenCV's thread pool down while workers are forked: a child that inherits one hangs when it touches it."""
    import cv2

    threads = cv2.getNumThreads()
    if wanted:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        if wanted:
            cv2.setNumThreads(threads)


def start_worker(_: int) -> None:
    """Keep each worker to one thread, and leave signals to the main process, which saves before it leaves.

    SLURM and Ctrl-C signal the whole process group. A worker outlives that by some seconds, in which the main process
    finishes its step and tells it to end.
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_TO_SAVE))
    torch.set_num_threads(1)
    if cv2.getNumThreads() != 1:  # only where workers are not forked
        cv2.setNumThreads(1)
