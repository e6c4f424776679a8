"""torchvision's Keypoint R-CNN with a ResNet-50 pyramid."""

from segworker.models.common.torchvision_nets import LICENCE
from segworker.models.keypointrcnn.model import build_keypoint_rcnn
from segworker.models.registry import ModelEntry, register

__all__ = ["build_keypoint_rcnn"]

register(
    ModelEntry(
        name="keypointrcnn_resnet50_fpn",
        build=build_keypoint_rcnn,
        summary="Keypoint R-CNN (people and 17 keypoints), ResNet-50 FPN, as torchvision's COCO_V1 weights want it",
        tasks=("boxes", "keypoints"),
        num_parameters=59_137_258,
        licence=LICENCE,
        official="keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        published="box AP 54.6, keypoint AP 65.0 (COCO val, torchvision)",
        narrow={
            "backbone": "resnet18",
            "frozen_norm": False,
            "num_keypoints": 3,
            "proposals": 50,
            "detections": 5,
            "samples": 32,
        },
    )
)
