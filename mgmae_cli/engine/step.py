"""One step of a run, from a batch on the CPU to changed weights. The way of a clip, in one screen:

batch -> device -> mask (unless a worker drew it) -> visible and decoded tokens -> predictions -> loss -> AdamW.

Departures from the official code: tokens are gathered before they are embedded, targets are made for scored tokens
only, and nothing in a step waits for the device: losses stay there until somebody reads them. Torch's global generators
are seeded anew for each batch, so that what draws from them (drop path, dropout) is resumed exactly, on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgmae_cli.engine.distributed import Place
from mgmae_cli.masking.masker import Masker
from mgmae_cli.model.loss import pretrain_loss
from mgmae_cli.model.tokens import gather_tokens, pixel_targets, running_cell_tokens, split_tokens
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.loader import Batch

_DEVICE_MASK, _CELL, _GLOBAL = 101, 102, 106  # what a derived generator is for


class Task(Protocol):
    """What a run trains: the engine asks for nothing else, in pre-training and in fine-tuning."""

    module: nn.Module

    def loss(self, batch: Batch, generator_key: tuple[int, ...]) -> Tensor:
        """Return the mean loss of a batch that is on the device.

        Args:
            generator_key: seeds whatever the task draws; different for each batch of a run.
        """
        ...


class PretrainTask:
    """Masked autoencoding of clips.

    Args:
        module: a VideoMAE, possibly compiled or wrapped for several ranks.
        masker: draws masks where the loader did not.
        running_cell: decode half of the tokens, as VideoMAE V2.
    """

    def __init__(self, module: nn.Module, masker: Masker, running_cell: bool = False) -> None:
        self.module = module
        self.masker = masker
        self.running_cell = running_cell

    def loss(self, batch: Batch, generator_key: tuple[int, ...]) -> Tensor:
        """Return the mean squared error on the masked (and decoded) tokens of a batch; see `Task.loss`."""
        grid = self.masker.grid
        mask = batch.masks
        if mask is None:
            mask = self.masker(batch.clips, derive_generator(*generator_key, _DEVICE_MASK), batch.truth)
        visible, decoded = split_tokens(mask, self.masker.visible_tokens)
        scored = None
        if self.running_cell:
            cells = derive_generator(*generator_key, _CELL)
            decoded, scored = running_cell_tokens(mask, grid.slots, grid.rows, grid.cols, cells)
        with torch.no_grad():
            targets = pixel_targets(gather_tokens(batch.clips, decoded, grid.tubelet, grid.patch))
        predictions = self.module(batch.clips, visible, decoded)
        return pretrain_loss(predictions, targets, scored)


def train_step(
    task: Task,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    place: Place,
    generator_key: tuple[int, ...],
    clip_grad: float | None = None,
) -> Tensor:
    """Do one optimiser step over one or several batches of equal size.

    Args:
        task: what is trained.
        micro_batches: gradients are averaged over them.
        generator_key: (seed, step); rank and number of the micro batch are added here.
        clip_grad: largest gradient norm; None leaves gradients alone.

    Returns:
        The mean loss, a scalar on the device, detached.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=place.device)
    for number, batch in enumerate(micro_batches):
        key = (*generator_key, place.rank, number)
        torch.manual_seed(derive_generator(*key, _GLOBAL).initial_seed())
        last = number == len(micro_batches) - 1
        module = task.module
        wait = module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()
        with wait:
            with place.autocast():
                loss = task.loss(batch.to(place.device), key)
            torch.autograd.backward(loss / len(micro_batches))
        total += loss.detach() / len(micro_batches)
    if clip_grad is not None:
        nn.utils.clip_grad_norm_(task.module.parameters(), clip_grad)
    optimizer.step()
    return total
