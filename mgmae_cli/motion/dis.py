"""`dis`: OpenCV's Dense Inverse Search flow (Kroeger et al., arXiv 1603.03590). The default estimator.

It needs neither weights nor a GPU and is quick enough for the loader's workers. The paper uses RAFT-small or TVL1.

`scale` alone says how fine the flow is. OpenCV's presets would stop one or two pyramid levels short of the frames they
are given, and enlarge; estimating at every level of smaller frames gives the same flow for less time.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from mgmae_cli.interfaces import FlowEstimator, FlowRequest, PluginOptions
from mgmae_cli.motion.grey import estimate_on_grey

FINE_BELOW = 128  # pixels: smaller frames are cheap, and half of them shows too little


class DisFlow(FlowEstimator):
    """Estimate flow by Dense Inverse Search, on grey frames."""

    name = "dis"
    runs_on = "worker"

    class Options(PluginOptions):
        preset: Literal["ultrafast", "fast", "medium"] = Field(
            "ultrafast", description="OpenCV's trade of time for accuracy: overlap of patches, iterations, refinement"
        )
        patch_stride: int = Field(
            6, ge=1, le=8, description="pixels from one 8 x 8 patch to the next; OpenCV's presets have 3 or 4"
        )
        scale: int | None = Field(
            None,
            ge=1,
            description="estimate on frames this many times smaller; default: 2, of frames below 128 pixels 1",
        )

    options: DisFlow.Options

    def estimate(self, request: FlowRequest) -> Tensor:
        import cv2

        preset = {
            "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
            "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
            "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
        }[self.options.preset]
        method = cv2.DISOpticalFlow.create(preset)
        # Also keeps OpenCV from choosing levels by itself on small frames, which it does for good: results would depend
        # on which sizes the object had met before.
        method.setFinestScale(0)
        method.setPatchStride(self.options.patch_stride)
        scale = self.options.scale or (2 if min(request.clip.shape[-2:]) >= FINE_BELOW else 1)
        return estimate_on_grey(request, scale, lambda source, target: method.calc(source, target, None), self.name)
