"""Keypoint R-CNN (He et al., 2017, arXiv:1703.06870, section 5) as torchvision builds it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torchvision.models.detection import KeypointRCNN

from segworker.models.common.coco import name_classes
from segworker.models.common.options import parse_options
from segworker.models.common.torchvision_nets import v1_backbone, wrap
from segworker.models.common.two_stage import TwoStage
from segworker.models.keypointrcnn.config import COCO_KEYPOINTS, PERSON, KeypointOptions


def build_keypoint_rcnn(**options: object) -> TwoStage:
    """Return torchvision's network with random weights; options are fields of `KeypointOptions`."""
    chosen = parse_options(KeypointOptions, options)
    network = KeypointRCNN(
        v1_backbone(chosen), chosen.num_classes, num_keypoints=chosen.num_keypoints, **chosen.settings
    )
    network.roi_heads.keypoint_predictor.register_forward_hook(_contiguous)
    named = name_classes(chosen.num_classes - 1, chosen.class_names, default=PERSON)
    names: tuple[str, ...] = COCO_KEYPOINTS
    if chosen.num_keypoints != len(names):
        names = tuple(f"keypoint {k}" for k in range(1, chosen.num_keypoints + 1))
    return wrap(network, [replace(category, keypoints=names) for category in named])


def _contiguous(_layer: nn.Module, _inputs: object, heat_maps: Tensor) -> Tensor:
    """Lay heat maps out row by row: torchvision's loss takes a view, which channels-last tensors do not allow."""
    return heat_maps.contiguous()
