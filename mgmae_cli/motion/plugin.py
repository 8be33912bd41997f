"""The flow estimators that come with mgmae. OpenCV and torchvision are imported when one is used, not here."""

from __future__ import annotations

from mgmae_cli.hookspecs import hookimpl
from mgmae_cli.interfaces import FlowEstimator
from mgmae_cli.motion.dis import DisFlow
from mgmae_cli.motion.raft import RaftFlow
from mgmae_cli.motion.truth import TruthFlowEstimator
from mgmae_cli.motion.tvl1 import Tvl1Flow
from mgmae_cli.motion.zero import ZeroFlow


@hookimpl
def mgmae_register_flows() -> list[type[FlowEstimator]]:
    """Return the built-in flow estimators."""
    return [DisFlow, RaftFlow, Tvl1Flow, ZeroFlow, TruthFlowEstimator]
