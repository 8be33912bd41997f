"""The VideoMAE model: what it computes, on tiny grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.loss import pretrain_loss
from mgmae_cli.model.tokens import all_tokens, gather_tokens, normalise_pixels, pixel_targets, split_tokens
from mgmae_cli.model.videomae import SIZES, VideoMAE, ViTSize, build_videomae

GRID = ClipGrid(frames=4, height=16, width=24, tubelet=2, patch=8)
SIZE = ViTSize(width=24, depth=2, heads=2, decoder_width=16, decoder_heads=2, decoder_depth=2)


def model_and_inputs(num_visible: int = 4, batch: int = 2) -> tuple[VideoMAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = VideoMAE(GRID, SIZE)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    clip = torch.randint(0, 256, (batch, 3, 4, 16, 24), dtype=torch.uint8)
    mask = torch.rand(batch, GRID.tokens).argsort(dim=1) >= num_visible
    return model, clip, *split_tokens(mask, num_visible)


def test_gathering_before_embedding_equals_a_convolution_and_then_gathering() -> None:
    model, clip, visible, _ = model_and_inputs()
    embed = model.encoder.patch_embed
    pixels = normalise_pixels(clip.movedim(1, -1)).movedim(-1, 1)
    every = F.conv3d(pixels, embed.proj.weight, embed.proj.bias, stride=embed.proj.stride).flatten(2).transpose(1, 2)
    wanted = every.gather(1, visible[..., None].expand(-1, -1, SIZE.width))
    assert torch.allclose(embed(gather_tokens(clip, visible, 2, 8)), wanted, atol=1e-5)


def test_encoder_sees_visible_tokens_only() -> None:
    model, clip, visible, masked = model_and_inputs()
    changed = clip.clone()
    view = changed.view(2, 3, 2, 2, 2, 8, 3, 8)
    for b in range(2):
        for n in masked[b].tolist():
            slot, row, col = n // 6, n // 3 % 2, n % 3
            view[b, :, slot, :, row, :, col] = 255 - view[b, :, slot, :, row, :, col]
    assert torch.equal(model(clip, visible, masked), model(changed, visible, masked))
    assert not torch.allclose(model(clip, masked, visible), model(changed, masked, visible))


def test_last_decoder_block_skips_work_without_changing_predictions() -> None:
    model, clip, visible, masked = model_and_inputs()
    predictions = model(clip, visible, masked)
    table = model.decoder_positions
    x = model.encoder_to_decoder(model.encoder(clip, visible)) + table[visible]
    x = torch.cat([x, model.mask_token + table[masked]], dim=1)
    for block in model.decoder.blocks:
        x = block(x)
    wanted = model.decoder.head(model.decoder.norm(x[:, -masked.shape[1] :]))
    assert torch.allclose(predictions.flatten(2), wanted, atol=1e-5)


def test_decoding_a_part_gives_predictions_of_that_part_only() -> None:
    model, clip, visible, masked = model_and_inputs()
    assert model(clip, visible, masked[:, ::2]).shape == (2, 4, GRID.token_pixels, 3)


def test_gradient_reaches_every_parameter() -> None:
    model, clip, visible, masked = model_and_inputs()
    loss = pretrain_loss(model(clip, visible, masked), pixel_targets(gather_tokens(clip, masked, 2, 8)))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_loss_is_the_mean_over_scored_tokens() -> None:
    torch.manual_seed(0)
    predictions, targets = torch.randn(2, 5, 2, 3), torch.randn(2, 5, 2, 3)
    scored = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    errors = [
        (predictions[b, m, p, c] - targets[b, m, p, c]).item() ** 2
        for b in range(2)
        for m in range(5)
        if scored[b, m]
        for p in range(2)
        for c in range(3)
    ]
    assert pretrain_loss(predictions, targets, scored).item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    every = torch.ones_like(scored)
    assert torch.allclose(pretrain_loss(predictions, targets), pretrain_loss(predictions, targets, every))


def test_checkpointing_changes_neither_loss_nor_gradients() -> None:
    model, clip, visible, masked = model_and_inputs()
    gradients = []
    for checkpointing in (False, True):
        model.encoder.checkpointing = model.decoder.checkpointing = checkpointing
        model.zero_grad()
        model(clip, visible, masked).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, third = (build_videomae("tiny", GRID, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["mask_token"], third["mask_token"])


def test_initialisation_follows_the_official_code() -> None:
    model = build_videomae("tiny", GRID, seed=0)
    state = model.state_dict()
    width = SIZES["tiny"].width
    bound = (6 / (width + 3 * width)) ** 0.5  # Xavier over the joint matrix of queries, keys and values
    weight = state["encoder.blocks.0.attn.qkv.weight"]
    assert 0.98 * bound < weight.abs().max() <= bound
    assert state["mask_token"].abs().max() <= 0.02
    assert state["mask_token"].std() > 0.008
    assert not state["decoder.head.bias"].any()


def test_features_of_all_tokens_equal_encoding_with_all_visible() -> None:
    model, clip, _, _ = model_and_inputs()
    index = torch.arange(GRID.tokens).expand(2, -1)
    encoder = model.encoder
    assert torch.allclose(encoder.features(clip), encoder(clip, index), atol=1e-6)
    assert encoder.features(clip).shape == (2, GRID.tokens, SIZE.width)


def test_hidden_states_are_the_embedding_and_each_blocks_output() -> None:
    model, clip, _, _ = model_and_inputs()
    encoder = model.encoder
    states = encoder.hidden_states(clip, [0, 1, 2])
    assert torch.equal(states[0], encoder.patch_embed(all_tokens(clip, 2, 8)) + encoder.positions)
    assert torch.equal(states[2], encoder.blocks[1](states[1]))
    assert torch.equal(encoder.features(clip), encoder.norm(states[2]))
    assert torch.equal(encoder.features(clip, layer=1), states[1])
    with pytest.raises(ConfigError, match="layer 3"):
        encoder.hidden_states(clip, [3])


def test_autocast_to_bf16_stays_close_to_fp32() -> None:
    model, clip, visible, masked = model_and_inputs()
    wanted = model(clip, visible, masked)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(clip, visible, masked)
    assert (got.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_compiles_without_a_graph_break(checkpointing: bool) -> None:
    model, clip, visible, _ = model_and_inputs()
    model.encoder.checkpointing = model.decoder.checkpointing = checkpointing
    mask = torch.ones(2, GRID.tokens, dtype=torch.bool).scatter(1, visible, False)

    def step(clip: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        visible, masked = split_tokens(mask, 4)
        return pretrain_loss(model(clip, visible, masked), pixel_targets(gather_tokens(clip, masked, 2, 8)))

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(compiled(clip, mask))
    assert torch.allclose(compiled(clip, mask), step(clip, mask))


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_sizes_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        model = VideoMAE(ClipGrid(), SIZES[name])
    million = sum(p.numel() for p in model.parameters()) / 1e6
    expected = {"tiny": 1.6, "small": 24.0, "base": 94.2, "large": 319.0, "huge": 651.7}
    assert million == pytest.approx(expected[name], rel=0.02)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.name: 'giant'"):
        build_videomae("giant", GRID, seed=0)
