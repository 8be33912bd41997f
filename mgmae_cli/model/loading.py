"""Put weights into models: whole models from a file, and a new model's start from another's weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mgmae_cli.errors import CheckpointError
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.resize import resize_weights
from mgmae_cli.model.videomae import VideoMAE, preset_name
from mgmae_cli.model.weights import Weights, build, checked, compare, refusal

DECODER_PARTS = ("decoder.", "encoder_to_decoder.", "mask_token")
HEAD = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")


def build_model(
    weights: Weights, allow_partial: bool = False, checkpointing: bool = False
) -> tuple[VideoMAE | VideoClassifier | VideoEncoder, list[str]]:
    """Return the model that weights are of, and notes, such as what is missing.

    Args:
        allow_partial: go on where keys are missing, extra or misshapen; what is missing keeps random values.

    Raises:
        CheckpointError: keys don't fit.
    """
    weights = checked(weights, allow_partial)
    model = build(weights.geometry, weights.kind, checkpointing)
    model.load_state_dict(weights.state, strict=not allow_partial)
    return model, list(weights.notes)


def build_pretrained(
    weights: Weights, allow_partial: bool = False, checkpointing: bool = False
) -> tuple[VideoMAE, list[str]]:
    """Return a pre-training model with its decoder; see `build_model`.

    Raises:
        CheckpointError: the weights have no decoder, or keys don't fit.
    """
    if weights.kind != "pretrain":
        raise CheckpointError(f"{weights.title}: has no decoder; a pre-training checkpoint is needed here")
    model, notes = build_model(weights, allow_partial, checkpointing)
    assert isinstance(model, VideoMAE)
    return model, notes


def build_encoder(
    weights: Weights, allow_partial: bool = False, checkpointing: bool = False
) -> tuple[VideoEncoder, list[str]]:
    """Return the encoder of any kind of weights, for features; see `build_model`."""
    model, notes = build_model(as_encoder(weights), allow_partial, checkpointing)
    assert isinstance(model, VideoEncoder)
    return model, notes


def as_encoder(weights: Weights) -> Weights:
    """Return the encoder alone. A classifier's has no final norm: its norm comes after pooling."""
    if weights.kind == "encoder":
        return weights
    final_norm = weights.kind == "pretrain" and weights.geometry.final_norm
    size = replace(weights.geometry.size, decoder_width=0, decoder_heads=0, decoder_depth=0, decoder_hidden=None)
    geometry = replace(weights.geometry, size=size, final_norm=final_norm, num_classes=0, last_eps=weights.geometry.eps)
    state = _encoder_state(weights)
    return replace(weights, kind="encoder", state=state, geometry=geometry, labels=(), averaged=None)


def load_into(model: VideoMAE | VideoEncoder, weights: Weights, allow_partial: bool = False) -> list[str]:
    """Start a model from weights, perhaps of another kind, and return notes on what was done.

    What must differ between kinds is no mismatch: a classifier starts its head anew where there is none for as many
    classes; an encoder leaves a decoder or head aside. Clips of another size are fitted where that is sound.

    Args:
        allow_partial: take what fits where keys are missing, extra or misshapen, and start a decoder anew where there
            is none; the rest of the model stays as it is.

    Raises:
        CheckpointError: another architecture, or keys that don't fit and `allow_partial` is False.
    """
    _same_architecture(model, weights)
    whole = isinstance(model, VideoMAE) and weights.kind == "pretrain"
    fitted = resize_weights(weights if whole else as_encoder(weights), model.grid)
    state, anew, notes = dict(fitted.state), set[str](), list(fitted.notes)
    if weights.kind == "pretrain" and not whole:
        notes.append("the decoder is left aside")
    if isinstance(model, VideoMAE):
        notes += _eps_notes(model, weights)
        if not whole:
            if not allow_partial:
                raise CheckpointError(f"{weights.title}: has no decoder; --allow-partial starts one anew")
            state = {f"encoder.{name}": tensor for name, tensor in state.items()}
            anew = {name for name in model.state_dict() if name.startswith(DECODER_PARTS)}
            notes.append("the decoder starts anew")
    elif isinstance(model, VideoClassifier):
        head, anew, why = _head_for(model, weights)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")} | head
        notes += why
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in anew}
    mismatch = compare(state, shapes)
    if mismatch and not allow_partial:
        raise refusal(weights, mismatch)
    fitting = {name: tensor for name, tensor in state.items() if shapes.get(name) == tuple(tensor.shape)}
    model.load_state_dict(fitting, strict=False)
    return [*notes, *mismatch.describe().splitlines()]


def _head_for(model: VideoClassifier, weights: Weights) -> tuple[dict[str, Tensor], set[str], list[str]]:
    """Return what a classifier takes of the weights beyond the encoder, the names that start anew, and notes."""
    if weights.kind != "classifier":
        return {}, set(HEAD), ["fc_norm and head start anew"]
    head = {name: weights.state[name] for name in HEAD if name in weights.state}
    classes = weights.geometry.num_classes
    if classes == model.num_classes:
        return head, set(), []
    anew = {"head.weight", "head.bias"}
    kept = {name: tensor for name, tensor in head.items() if name not in anew}
    return kept, anew, [f"the head starts anew: {classes} classes there, {model.num_classes} here"]


def _encoder_state(weights: Weights) -> dict[str, Tensor]:
    if weights.kind == "pretrain":
        state = {name: tensor for name, tensor in weights.state.items() if not name.startswith(DECODER_PARTS)}
        return {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in weights.state.items() if name not in HEAD}


def _same_architecture(model: VideoMAE | VideoEncoder, weights: Weights) -> None:
    """Refuse weights of another width, depth or number of heads: the last would fit and compute something else."""
    encoder = model.encoder if isinstance(model, VideoMAE) else model
    size = weights.geometry.size
    here = (encoder.width, len(encoder.blocks), encoder.heads)
    there = (size.width, size.depth, size.heads)
    if here != there:
        name = preset_name(size)
        fix = f"choose --model {name}" if name else "no --model has that size"
        raise CheckpointError(
            f"{weights.title}: encoder of width {there[0]}, depth {there[1]}, {there[2]} heads; "
            f"the model has {here[0]}, {here[1]}, {here[2]}: {fix}"
        )
    if isinstance(model, VideoMAE) and weights.kind == "pretrain":
        mine = (model.size.decoder_width, model.size.decoder_depth, model.size.decoder_heads)
        theirs = (size.decoder_width, size.decoder_depth, size.decoder_heads)
        if mine != theirs:
            depth_alone = (mine[0], mine[2]) == (theirs[0], theirs[2])
            fix = f"set model.decoder_depth = {theirs[1]}" if depth_alone else "mgmae convert --encoder drops it"
            raise CheckpointError(
                f"{weights.title}: decoder of width {theirs[0]}, depth {theirs[1]}, {theirs[2]} heads; "
                f"the model has {mine[0]}, {mine[1]}, {mine[2]}: {fix}"
            )


def _eps_notes(model: VideoMAE, weights: Weights) -> list[str]:
    """Say where norms add something else to the variance than they did with these weights."""
    here, there = model.decoder.norm.eps, {weights.geometry.eps}
    if weights.kind == "pretrain":
        there.add(weights.geometry.last_eps)
    other = " and ".join(f"{eps:g}" for eps in sorted(there - {here}))
    return [f"eps of norms is {here:g}, not {other}: outputs differ by up to 1e-5 of their size"] if other else []
