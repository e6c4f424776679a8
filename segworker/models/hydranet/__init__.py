"""A HydraNet: dense heads on one light encoder and decoder."""

from segworker.models.hydranet.model import build_hydranet
from segworker.models.hydranet.weights import OFFICIAL
from segworker.models.registry import ModelEntry, register

__all__ = ["build_hydranet"]

register(
    ModelEntry(
        name="hydranet_mnv2",
        build=build_hydranet,
        summary="HydraNet: MobileNetV2 and light-weight RefineNet with semantic, depth and normal heads",
        tasks=("semantic", "dense"),
        num_parameters=2_991_687,
        licence="code here Apache-2.0; official weights for academic use (DrSleep/multi-task-refinenet)",
        official="ExpKITTI_joint.ckpt",
        published="87 % mean IoU (KITTI, 6 classes, as the paper's abstract says)",
        layouts=(OFFICIAL,),
        narrow={"num_classes": 2, "decoder_channels": 64},
    )
)
