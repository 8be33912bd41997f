"""Equality with transformers' VideoMAE, built from configs with random weights."""

from __future__ import annotations

import pytest
import torch

from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.tokens import gather_tokens, normalise_pixels, pixel_targets, split_tokens
from mgmae_cli.model.videomae import VideoMAE, ViTSize, pretrain_loss

transformers = pytest.importorskip("transformers")


def from_hf(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename transformers' keys, one by one and by hand."""
    out = {}
    for key, value in state.items():
        key = key.replace("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj")
        key = key.replace("videomae.encoder.layer", "encoder.blocks").replace("videomae.layernorm", "encoder.norm")
        key = key.replace("decoder.decoder_layers", "decoder.blocks")
        for theirs, ours in {
            "attention.attention.query.bias": "attn.q_bias",
            "attention.attention.value.bias": "attn.v_bias",
            "attention.output.dense": "attn.proj",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        }.items():
            key = key.replace(theirs, ours)
        out[key] = value
    for key in [key for key in out if key.endswith("attention.attention.query.weight")]:
        base = key.removesuffix("attention.attention.query.weight")
        parts = [out.pop(f"{base}attention.attention.{name}.weight") for name in ("query", "key", "value")]
        out[f"{base}attn.qkv.weight"] = torch.cat(parts)
    return out


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        (ClipGrid(4, 16, 16, 2, 8), ViTSize(32, 2, 2, 16, 2, 2)),
        (ClipGrid(6, 24, 16, 3, 8), ViTSize(48, 3, 4, 24, 3, 1, hidden=2.0)),
        (ClipGrid(16, 64, 64, 2, 16), ViTSize(384, 12, 6, 192, 3, 4)),
    ],
)
def test_predictions_and_loss_equal_transformers(grid: ClipGrid, size: ViTSize) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=[grid.height, grid.width],
        patch_size=grid.patch,
        num_frames=grid.frames,
        tubelet_size=grid.tubelet,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=round(size.hidden * size.width),
        decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=size.decoder_depth,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=round(size.hidden * size.decoder_width),
        layer_norm_eps=1e-6,
        use_mean_pooling=False,
    )
    theirs = transformers.VideoMAEForPreTraining(config).eval()
    for name, parameter in theirs.named_parameters():  # biases start at zero, which would hide their loss
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.05)
    ours = VideoMAE(grid, size, eps=1e-6, decoder_norm_eps=1e-5)
    ours.load_state_dict(from_hf(theirs.state_dict()))

    clip = torch.randint(0, 256, (2, 3, grid.frames, grid.height, grid.width), dtype=torch.uint8)
    visible_count = max(2, grid.tokens // 4)
    mask = torch.rand(2, grid.tokens).argsort(dim=1) >= visible_count
    visible, masked = split_tokens(mask, visible_count)
    pixel_values = normalise_pixels(clip.movedim(1, -1)).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        wanted = theirs(pixel_values, bool_masked_pos=mask)
        encoded = theirs.videomae(pixel_values, bool_masked_pos=mask).last_hidden_state
        torch.testing.assert_close(ours.encoder(clip, visible), encoded, rtol=1e-5, atol=1e-5)
        got = ours(clip, visible, masked)
        torch.testing.assert_close(got.flatten(2), wanted.logits, rtol=1e-5, atol=1e-5)
        loss = pretrain_loss(got, pixel_targets(gather_tokens(clip, masked, grid.tubelet, grid.patch)))
        torch.testing.assert_close(loss, wanted.loss, rtol=1e-5, atol=1e-5)
        inverted = ours(clip, *split_tokens(~mask, grid.tokens - visible_count))
        assert inverted.shape != got.shape or not torch.allclose(inverted, got, atol=1e-2)
