"""`tvl1`: OpenCV's Dual TV-L1 flow (Zach et al., 2007), which the paper computes offline as the other choice to RAFT.

Slow: made for comparisons, not for every day. Lives in opencv-contrib.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from mgmae_cli.errors import PluginError
from mgmae_cli.interfaces import FlowEstimator, FlowRequest, PluginOptions
from mgmae_cli.motion.grey import estimate_on_grey


class Tvl1Flow(FlowEstimator):
    """Estimate flow by Dual TV-L1, on grey frames."""

    name = "tvl1"
    runs_on = "worker"

    class Options(PluginOptions):
        scale: int = Field(2, ge=1, description="estimate on frames this many times smaller; flow comes on that grid")
        warps: int = Field(5, ge=1, description="warps of the target frame per pyramid level")
        levels: int = Field(5, ge=1, description="pyramid levels")
        smoothness: float = Field(0.15, gt=0, description="weight of the data term (lambda); smaller is smoother")

    options: Tvl1Flow.Options

    def estimate(self, request: FlowRequest) -> Tensor:
        import cv2

        if not hasattr(cv2, "optflow"):
            raise PluginError(
                "flow 'tvl1': this OpenCV has no contrib modules; "
                "pip uninstall opencv-python opencv-python-headless, then pip install opencv-contrib-python-headless"
            )
        method = cv2.optflow.DualTVL1OpticalFlow.create(
            lambda_=self.options.smoothness, nscales=self.options.levels, warps=self.options.warps
        )
        return estimate_on_grey(
            request, self.options.scale, lambda source, target: method.calc(source, target, None), self.name
        )
