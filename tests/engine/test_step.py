"""One step: what is equal to what, on the model itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.optim import decay_groups, make_adamw
from mgmae_cli.engine.step import PretrainTask, train_step
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import MaskInputs
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.model.tokens import all_tokens, pixel_targets
from mgmae_cli.model.videomae import VideoMAE
from mgmae_cli.video.loader import Batch
from tests.engine.conftest import MICRO

GRID = ClipGrid(4, 16, 16, 2, 8)
CPU = Place(torch.device("cpu"), "fp32")
MASKER = Masker(TubeMask(None), None, GRID, 0.5)


def _batch(clips: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (clips, 3, 4, 16, 16), generator=generator, dtype=torch.uint8)
    masks = torch.cat([MASKER(pixels[:1], generator) for _ in range(clips)])
    return Batch(pixels, ["x"] * clips, torch.full((clips,), -1), masks)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    assert batch.masks is not None
    names, labels = batch.names[start:stop], batch.labels[start:stop]
    return Batch(batch.clips[start:stop], names, labels, batch.masks[start:stop])


def _model(**options: Any) -> VideoMAE:
    torch.manual_seed(3)
    return VideoMAE(GRID, MICRO, **options)


def _step(model: VideoMAE, batches: Sequence[Batch], place: Place = CPU, **options: Any) -> tuple[float, list[Tensor]]:
    """Do one step; return the loss and the gradients."""
    running_cell = options.pop("running_cell", False)
    optimizer = make_adamw(decay_groups(model, 0.05), 1e-3, (0.9, 0.95), place.device)
    loss = train_step(PretrainTask(model, MASKER, running_cell), batches, optimizer, place, (0, 0), **options)
    return float(loss), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_the_loss_is_the_squared_error_on_all_masked_tokens_and_on_no_other() -> None:
    model, batch = _model(), _batch(3)
    assert batch.masks is not None
    visible = (~batch.masks).nonzero()[:, 1].view(3, -1)
    masked = batch.masks.nonzero()[:, 1].view(3, -1)
    targets = pixel_targets(all_tokens(batch.clips, 2, 8))[batch.masks].reshape(3, masked.shape[1], 128, 3)
    expected = (model(batch.clips, visible, masked) - targets).square().mean()
    assert _step(copy.deepcopy(model), [batch])[0] == pytest.approx(expected.item(), rel=1e-6)


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    whole, parts, batch = _model(), _model(), _batch(6)
    loss, gradients = _step(whole, [batch])
    loss_of_parts, gradients_of_parts = _step(parts, [_part(batch, start, start + 2) for start in (0, 2, 4)])
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    for one, two in zip(gradients, gradients_of_parts):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)
    before = _model().state_dict()
    for (name, one), two in zip(whole.state_dict().items(), parts.state_dict().values()):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
        assert not torch.equal(one, before[name]), name


def test_recomputed_activations_give_the_same_gradients() -> None:
    kept, recomputed = _step(_model(), [_batch(3)]), _step(_model(checkpointing=True), [_batch(3)])
    assert kept[0] == recomputed[0]
    assert len(kept[1]) == len(recomputed[1]) == len(list(_model().parameters()))
    for one, two in zip(kept[1], recomputed[1]):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_gradients_are_cut_to_the_largest_norm_and_left_alone_below_it() -> None:
    free = torch.cat([gradient.flatten() for gradient in _step(_model(), [_batch(3)])[1]])
    norm = float(free.norm())
    cut = torch.cat([gradient.flatten() for gradient in _step(_model(), [_batch(3)], clip_grad=norm / 4)[1]])
    torch.testing.assert_close(cut, free / 4, rtol=1e-4, atol=1e-8)
    loose = torch.cat([gradient.flatten() for gradient in _step(_model(), [_batch(3)], clip_grad=norm * 4)[1]])
    assert torch.equal(loose, free)


def test_bf16_keeps_weights_in_fp32_and_comes_near_the_loss_of_fp32() -> None:
    model = _model()
    loss, gradients = _step(model, [_batch(3)], Place(torch.device("cpu"), "bf16"))
    exact, _ = _step(_model(), [_batch(3)])
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)
    assert {tensor.dtype for tensor in [*model.parameters(), *gradients]} == {torch.float32}


def test_the_running_cell_scores_half_of_the_tokens_less_those_that_are_visible() -> None:
    batch = _batch(4)
    scored = []

    class Watched(VideoMAE):
        def forward(self, clip: Tensor, visible_index: Tensor, decode_index: Tensor) -> Tensor:
            scored.append((visible_index, decode_index))
            return super().forward(clip, visible_index, decode_index)

    torch.manual_seed(3)
    loss, _ = _step(Watched(GRID, MICRO), [batch], running_cell=True)
    ((visible, decoded),) = scored
    assert decoded.shape == (4, GRID.tokens // 2)
    model = _model()
    targets = pixel_targets(all_tokens(batch.clips, 2, 8))[torch.arange(4)[:, None], decoded]
    errors = (model(batch.clips, visible, decoded) - targets).square().mean((2, 3))
    assert batch.masks is not None
    hidden = batch.masks.gather(1, decoded)
    assert 0 < hidden.sum() < hidden.numel()
    assert loss == pytest.approx(errors[hidden].mean().item(), rel=1e-5)


def test_masks_are_drawn_on_the_device_where_the_loader_left_them_out() -> None:
    drawn = []

    class Watched(TubeMask):
        runs_on = "device"

        def sample(self, inputs: MaskInputs) -> Tensor:
            mask = super().sample(inputs)
            drawn.append(mask)
            return mask

    batch = _batch(3)
    batch.masks = None
    task = PretrainTask(_model(), Masker(Watched(None), None, GRID, 0.5))
    first, again, next_step, other_rank = (
        task.loss(batch, key) for key in ((0, 0, 0, 0), (0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    )
    assert first == again
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert next_step != first != other_rank


def test_the_global_generator_is_a_function_of_seed_step_rank_and_batch() -> None:
    seen: list[Tensor] = []

    class Drawing(PretrainTask):
        def loss(self, batch: Batch, generator_key: tuple[int, ...]) -> Tensor:
            seen.append(torch.rand(4))
            return super().loss(batch, generator_key)

    def draws(key: tuple[int, int], rank: int = 0) -> Tensor:
        seen.clear()
        model = _model()
        optimizer = make_adamw(decay_groups(model, 0.05), 1e-3, (0.9, 0.95), CPU.device)
        place = Place(CPU.device, "fp32", rank=rank, ranks=2)
        train_step(Drawing(model, MASKER), [_batch(2), _batch(2)], optimizer, place, key)
        return torch.stack(seen)

    first = draws((0, 5))
    torch.rand(100)
    assert torch.equal(draws((0, 5)), first)
    assert not torch.equal(first[0], first[1])
    for other in (draws((1, 5)), draws((0, 6)), draws((0, 5), rank=1)):
        assert not torch.equal(other, first)
