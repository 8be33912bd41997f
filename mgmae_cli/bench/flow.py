"""The part `flow`: what each estimator takes for a pair of frames, and RAFT against torchvision's model.

All neighbouring pairs of a clip are estimated, as motion masks ask for them. torchvision's model is called as the
official MGMAE code does it: one pair after the other, with the same weights and as many updates of the flow as ours.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.bench.clips import example_clips
from mgmae_cli.bench.measure import Competitor, Figure, clock_of, race
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.results import Row, Table
from mgmae_cli.errors import MgmaeError
from mgmae_cli.interfaces import FlowEstimator, FlowRequest
from mgmae_cli.motion.raft import RaftFlow
from mgmae_cli.motion.raft_pairs import SMALLEST_SIDE
from mgmae_cli.motion.raft_weights import load_raft

PEER = "torchvision, pair by pair"
SAME = "raft:scale=1,precision=fp32"  # what the peer computes


class PairByPair(FlowEstimator):
    """torchvision's own RAFT-small, called once for each pair.

    Args:
        weights: as for `RaftFlow`.
        iterations: updates of the flow.
    """

    name = "pair-by-pair"
    runs_on = "device"

    def __init__(self, weights: Path, iterations: int) -> None:
        from torchvision.models.optical_flow import raft_small

        super().__init__(options=None)
        self._iterations = iterations
        self._model: Any = raft_small()
        self._model.load_state_dict(load_raft("small", weights).state_dict())
        self._model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    def estimate(self, request: FlowRequest) -> Tensor:
        """Return (B, P, 2, H, W); every clip asks for the same pairs."""
        frames = request.clip.float() / 127.5 - 1
        pairs = zip(request.source[0].tolist(), request.target[0].tolist())
        with torch.no_grad():
            flows = [
                self._model(frames[:, :, source], frames[:, :, target], num_flow_updates=self._iterations)[-1]
                for source, target in pairs
            ]
        return torch.stack(flows, dim=1)


def run_flow(bench: Bench) -> list[Table]:
    """Measure all estimators that need no exact flow in turns, and by how much RAFT's flow differs from the peer's."""
    options, grid = bench.options, bench.options.grid
    with TemporaryDirectory() as folder:
        weights = options.weights or _random_raft(Path(folder) / "raft.pt")
        estimators, notes = _estimators(bench, weights)
        for estimator in estimators.values():
            estimator.to(bench.device)  # reads the weights
    clips = example_clips(bench, bench.batch_size if bench.device.type == "cuda" else 1)
    requests = {name: _request(estimator, clips, bench.device) for name, estimator in estimators.items()}
    for name in list(estimators):
        try:
            estimators[name].estimate(requests[name])
        except MgmaeError as error:  # what it needs is not installed
            notes.append(f"{name} is left out: {error}")
            del estimators[name]
    competitors = [_competitor(name, estimators[name], requests[name]) for name in estimators]
    timings = race(competitors, options.repeats, bench.say)
    rows = []
    for name in estimators:
        figures = {"a pair": timings[name].each("ms")}
        if name in (SAME, "raft") and PEER in estimators:
            figures[f"x {PEER}"] = timings[name].faster_than(timings[PEER])
        if name == SAME and PEER in estimators:
            # TF32, by which a GPU convolves, rounds far more than they differ
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                own, peer = (estimators[each].estimate(requests[each]) for each in (SAME, PEER))
            distance = torch.linalg.vector_norm(own - peer, dim=2)
            figures["mean difference"] = Figure.of([float(distance.mean())], "px")
            figures["largest"] = Figure.of([float(distance.max())], "px")
        rows.append(Row(name, figures))
    iterations = RaftFlow.Options().iterations
    title = (
        f"{grid.frames - 1} neighbouring pairs of {grid.height} x {grid.width}, RAFT-small with {iterations} updates"
    )
    notes.append(f"RAFT-small has {options.weights.name if options.weights else 'random weights'}")
    return [Table("flow", title, rows, [*NOTES, *notes])]


NOTES = (
    "estimators that run in a loader's worker have one core and one clip; others the device, and on a GPU a batch",
    "by default dis, tvl1 and raft give flow of half the size",
)


def _estimators(bench: Bench, weights: Path) -> tuple[dict[str, FlowEstimator], list[str]]:
    """Return estimators by their names in the table, and a note on each that is left out."""
    found: dict[str, FlowEstimator] = {}
    notes = []
    for name in bench.registry.names("flow"):
        cls = bench.registry.flow(name)
        if cls.needs_truth:
            continue
        try:
            given = {"weights": weights} if cls is RaftFlow else {}
            found[name] = cls(bench.registry.make_options("flow", cls, given))
        except MgmaeError as error:
            notes.append(f"{name} is left out: {error}")
    found[SAME] = RaftFlow(RaftFlow.Options(weights=weights, scale=1, precision="fp32"))
    grid = bench.options.grid
    if min(grid.height, grid.width) >= SMALLEST_SIDE:
        found[PEER] = PairByPair(weights, RaftFlow.Options().iterations)
    else:
        notes.append(f"torchvision's model is left out: it needs frames of {SMALLEST_SIDE} x {SMALLEST_SIDE}")
    return found, notes


def _random_raft(path: Path) -> Path:
    """Write random weights of RAFT-small, the same each time; return their path."""
    from torchvision.models.optical_flow import raft_small

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(raft_small().state_dict(), path)
    return path


def _request(estimator: FlowEstimator, clips: Tensor, device: torch.device) -> FlowRequest:
    """Return the request for all neighbouring pairs: of one clip in a worker, of all of them on the device."""
    clips = clips[:1] if estimator.runs_on == "worker" else clips.to(device)
    first = torch.arange(clips.shape[2] - 1).expand(len(clips), -1)
    return FlowRequest(clips, first, first + 1)


def _competitor(name: str, estimator: FlowEstimator, request: FlowRequest) -> Competitor:
    return Competitor(
        name,
        lambda _: estimator.estimate(request),
        work=request.source.numel(),
        clock=clock_of(request.clip.device),
        one_core=estimator.runs_on == "worker",
    )
