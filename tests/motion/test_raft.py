"""RAFT over many pairs against torchvision's own model pair by pair; weight files in both namings; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import optical_flow

from mgmae_cli.errors import CheckpointError, RunError
from mgmae_cli.interfaces import FlowRequest
from mgmae_cli.motion import raft, raft_pairs
from mgmae_cli.motion.raft import RaftFlow
from mgmae_cli.motion.raft_weights import load_raft, torchvision_names

BUILDERS = {"small": optical_flow.raft_small, "large": optical_flow.raft_large}


def random_model(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[name]().eval()


def princeton_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's weights under princeton-vl's names, with its doubled norms of the shortcuts."""
    renamed = {}
    for key, value in state.items():
        for old, new in (
            ("feature_encoder.", "fnet."),
            ("context_encoder.", "cnet."),
            ("mask_predictor.convrelu.0", "update_block.mask.0"),
            ("mask_predictor.conv.", "update_block.mask.2."),
            ("motion_encoder.convcorr", "encoder.convc"),
            ("motion_encoder.convflow", "encoder.convf"),
            ("motion_encoder.conv.0", "encoder.conv"),
            ("recurrent_block.convgru", "gru"),
        ):
            key = key.replace(old, new)
        if key.startswith("update_block.gru"):
            number, name, kind = key.removeprefix("update_block.gru").split(".")
            single = not any("convgru2" in other for other in state)
            key = f"update_block.gru.{name}{'' if single else number}.{kind}"
        if key.startswith("update_block.encoder."):
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if key.startswith(("fnet", "cnet")):
            head, *rest = key.split(".")
            text = ".".join(rest)
            for number in "123":
                text = text.replace(f"convnormrelu{number}.0", f"conv{number}")
                text = text.replace(f"convnormrelu{number}.1", f"norm{number}")
            text = text.replace("convnormrelu.0", "conv1").replace("convnormrelu.1", "norm1")
            if rest[0] == "conv":
                text = text.replace("conv.", "conv2.")
            key = f"{head}.{text}"
            if ".downsample.1." in key:
                renamed["module." + key.replace("downsample.1", "norm3")] = value
        renamed["module." + key] = value
    return renamed


@pytest.fixture(scope="module")
def moving_photograph() -> Tensor:
    """Return (2, 3, 5, 128, 144) uint8: two parts of a photograph that pan across the frame."""
    import matplotlib
    import numpy as np
    from PIL import Image

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as image:
        whole = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    clips = []
    for top, left, down, right in ((60, 180, 3, 5), (300, 120, -2, 4)):
        frames = [whole[:, top - t * down :, left - t * right :][:, :128, :144] for t in range(5)]
        clips.append(torch.stack(frames, dim=1))
    return torch.stack(clips)


def pair_by_pair(model: Any, clip: Tensor, source: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Return what torchvision's model says, one pair after the other: the slow second implementation."""
    frames = clip.float() / 255 * 2 - 1
    flow = torch.stack(
        [
            torch.cat(
                [
                    model(frames[row, None, :, s], frames[row, None, :, t], num_flow_updates=iterations)[-1]
                    for s, t in zip(source[row].tolist(), target[row].tolist())
                ]
            )
            for row in range(len(clip))
        ]
    )
    return flow


SOURCE, TARGET = torch.tensor([[0, 1, 4], [3, 2, 0]]), torch.tensor([[1, 2, 1], [2, 3, 4]])


@pytest.mark.parametrize("name", ["small", "large"])
def test_flow_equals_torchvisions_pair_by_pair_with_random_weights(
    name: str, moving_photograph: Tensor, tmp_path: Path
) -> None:
    model = random_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    options = RaftFlow.Options(model=name, weights=tmp_path / "weights.bin", iterations=2, scale=1, precision="fp32")
    flow = RaftFlow(options).estimate(FlowRequest(moving_photograph, SOURCE, TARGET))
    with torch.no_grad():
        expected = pair_by_pair(model, moving_photograph, SOURCE, TARGET, 2)
    assert flow.dtype == torch.float32
    assert flow.shape == expected.shape
    assert (flow - expected).norm(dim=2).mean() < 1e-3
    assert expected.norm(dim=2).mean() > 0.1


def test_flow_equals_torchvisions_pair_by_pair_with_trained_weights(
    moving_photograph: Tensor, shared_data: Path
) -> None:
    weights = shared_data / "weights" / "raft-small.pth"
    model = BUILDERS["small"]().eval()
    model.load_state_dict(torchvision_names(torch.load(weights, map_location="cpu", weights_only=True)))
    for iterations in (1, 6):
        options = RaftFlow.Options(weights=weights, iterations=iterations, scale=1, precision="fp32")
        flow = RaftFlow(options).estimate(FlowRequest(moving_photograph, SOURCE, TARGET))
        with torch.no_grad():
            expected = pair_by_pair(model, moving_photograph, SOURCE, TARGET, iterations)
        assert (flow - expected).norm(dim=2).mean() < 1e-3


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_coarser_grid_holds_the_mean_of_the_full_flow(
    name: str, scale: int, moving_photograph: Tensor, tmp_path: Path
) -> None:
    model = random_model(name)
    if (name, scale) == ("large", 8):  # answered by the cells themselves: the mean if pixels take after their own cell
        torch.nn.init.zeros_(model.mask_predictor.conv.weight)
        model.mask_predictor.conv.bias.data = 100.0 * (torch.arange(9) == 4).repeat_interleave(64)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    request = FlowRequest(moving_photograph[:1], SOURCE[:1], TARGET[:1])
    full, coarse = (
        RaftFlow(RaftFlow.Options(model=name, weights=tmp_path / "weights.pth", iterations=1, scale=grid)).estimate(
            request
        )[0]
        for grid in (1, scale)
    )
    assert coarse.shape == (3, 2, 128 // scale, 144 // scale)
    torch.testing.assert_close(coarse, F.avg_pool2d(full, scale))


def test_passes_of_any_size_give_the_same_flow(moving_photograph: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("small")
    frames = moving_photograph[0].transpose(0, 1).float() / 127.5 - 1
    flows = []
    for at_once in (1, 2, 100):
        monkeypatch.setattr(raft_pairs, "CPU_AT_ONCE", at_once)
        flows.append(raft_pairs.flow_of_pairs(model, frames, SOURCE[0], TARGET[0], iterations=2))
    torch.testing.assert_close(flows[0], flows[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(flows[0], flows[2], rtol=0, atol=1e-3)


def test_every_frame_is_encoded_once(moving_photograph: Tensor) -> None:
    model = random_model("small")
    encoded = {"feature_encoder": 0, "context_encoder": 0}
    for name in encoded:

        def count(_: Any, inputs: tuple[Tensor], name: str = name) -> None:
            encoded[name] += len(inputs[0])

        getattr(model, name).register_forward_pre_hook(count)
    frames = moving_photograph[0].transpose(0, 1).float() / 127.5 - 1
    raft_pairs.flow_of_pairs(model, frames, torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2, 1, 3]), iterations=1)
    assert encoded == {"feature_encoder": 4, "context_encoder": 3}  # frame 4 is in no pair


@pytest.mark.parametrize("amx", [False, True])
def test_auto_takes_bf16_where_matrix_units_are(
    amx: bool, moving_photograph: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft, "has_amx", lambda: amx)
    torch.save(random_model("small").state_dict(), tmp_path / "w.pth")
    request = FlowRequest(moving_photograph[:1], SOURCE[:1, :1], TARGET[:1, :1])
    auto, fp32, bf16 = (
        RaftFlow(RaftFlow.Options(weights=tmp_path / "w.pth", iterations=1, precision=precision)).estimate(request)
        for precision in ("auto", "fp32", "bf16")
    )
    assert torch.equal(auto, bf16 if amx else fp32)
    assert not torch.equal(bf16, fp32)


def test_bf16_flow_stays_near_fp32s(moving_photograph: Tensor, shared_data: Path) -> None:
    weights = shared_data / "weights" / "raft-small.pth"
    request = FlowRequest(moving_photograph[:1], SOURCE[:1], TARGET[:1])
    exact, rough = (
        RaftFlow(RaftFlow.Options(weights=weights, scale=1, precision=precision)).estimate(request)
        for precision in ("fp32", "bf16")
    )
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm(dim=2).mean() < 0.1


def test_flow_carries_no_gradient_but_may_be_used_with_some(moving_photograph: Tensor, tmp_path: Path) -> None:
    torch.save(random_model("small").state_dict(), tmp_path / "w.pth")
    flow = RaftFlow(RaftFlow.Options(weights=tmp_path / "w.pth", iterations=1)).estimate(
        FlowRequest(moving_photograph[:1], SOURCE[:1], TARGET[:1])
    )
    assert not flow.requires_grad
    weight = torch.ones((), requires_grad=True)
    (flow * weight).sum().backward()
    assert weight.grad is not None


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("naming", ["torchvision", "princeton"])
@pytest.mark.parametrize("name", ["small", "large"])
def test_weights_load_under_either_naming_whatever_the_file_is_called(
    name: Any, naming: str, wrapped: bool, tmp_path: Path
) -> None:
    state = random_model(name).state_dict()
    saved = princeton_names(state) if naming == "princeton" else state
    other = tmp_path / ("raft-princeton.pth" if naming == "torchvision" else "torchvision.bin")
    torch.save({"state_dict": saved} if wrapped else saved, other)
    loaded = load_raft(name, other).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_authors_own_file_loads(shared_data: Path) -> None:
    state = torch.load(shared_data / "weights" / "raft-small.pth", map_location="cpu", weights_only=True)
    assert all(key.startswith("module.") for key in state)
    model = load_raft("small", shared_data / "weights" / "raft-small.pth")
    assert torch.equal(model.feature_encoder.conv.weight, state["module.fnet.conv2.weight"])
    assert torch.equal(model.update_block.flow_head.conv2.bias, state["module.update_block.flow_head.conv2.bias"])


def test_weights_of_the_other_model_are_refused_with_the_fix(tmp_path: Path) -> None:
    torch.save(princeton_names(random_model("large").state_dict()), tmp_path / "raft-small.pth")
    with pytest.raises(CheckpointError, match=r"holds RAFT-large; add --set flow\.options\.model=large"):
        load_raft("small", tmp_path / "raft-small.pth")


def damaged(state: dict[str, Tensor]) -> dict[str, Any]:
    renamed = {key.replace("flow_head", "flow_tail"): value for key, value in state.items()}
    short = {key: value[:1] if key == "feature_encoder.conv.bias" else value for key, value in state.items()}
    return {
        "lacks 'update_block.flow_head.conv1.bias' and 3 more": renamed,
        "has another shape for 'feature_encoder.conv.bias'": short,
        "no RAFT weights \\(first key 'encoder.weight'\\)": {"encoder.weight": torch.zeros(1)},
        "no RAFT weights \\(first key 'nothing'\\)": {},
        "holds no state dict": torch.zeros(3),
    }


def test_files_that_hold_something_else_are_refused_by_what_they_hold(tmp_path: Path) -> None:
    for message, content in damaged(random_model("small").state_dict()).items():
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=f"flow.options.weights = .*weights.pth: {message}"):
            load_raft("small", tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half an archive"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth: can't be read as weights"):
        load_raft("small", tmp_path / "weights.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"feature_encoder.conv.weight": Path("anything")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        load_raft("small", tmp_path / "weights.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        load_raft("small", tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        load_raft("small", tmp_path)


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_failed_download_names_the_fix(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where no weights lie from before
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(RunError, match=rf"RAFT-{name} could not be downloaded .*--set flow\.options\.weights=PATH"):
        load_raft(name, None)


def test_weights_are_loaded_once_and_before_training_by_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, weights: Path | None) -> Any:
        calls.append((name, weights))
        return random_model("small")

    monkeypatch.setattr("mgmae_cli.motion.raft.load_raft", load)
    estimator = RaftFlow(RaftFlow.Options(iterations=1))
    assert calls == []
    estimator.to(torch.device("cpu"))
    assert calls == [("small", None)]
    clip = torch.zeros(1, 3, 2, 128, 128, dtype=torch.uint8)
    estimator.estimate(FlowRequest(clip, torch.tensor([[0]]), torch.tensor([[1]])))
    assert len(calls) == 1
