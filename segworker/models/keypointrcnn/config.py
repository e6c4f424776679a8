"""What Keypoint R-CNN is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.models.common.torchvision_nets import TorchvisionOptions
from segworker.types import Category

COCO_KEYPOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
PERSON = (Category(1, "person", keypoints=COCO_KEYPOINTS),)


@dataclass(frozen=True, slots=True)
class KeypointOptions(TorchvisionOptions):
    """Options; the defaults are those of the official checkpoints."""

    num_classes: int = 2
    num_keypoints: int = 17
    "Of every object, in one order; COCO's for people."
