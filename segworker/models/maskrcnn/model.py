"""Mask R-CNN (He et al., 2017, arXiv:1703.06870) as torchvision and as detectron2 build it.

Both are `TwoStage` models. They differ in class order, in where the ResNet strides, in RoIAlign's half pixel, in
anchors, and in whether the background has a box of its own: weights of the one are of no use to the other.
"""

from __future__ import annotations

from functools import partial

from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2

from segworker.models.common import torchvision_nets
from segworker.models.common.detectron2 import Detectron2Config, build_two_stage
from segworker.models.common.options import parse_options
from segworker.models.common.two_stage import TwoStage

build_v1 = partial(torchvision_nets.build_v1, MaskRCNN)
build_v2 = partial(torchvision_nets.build_v2, maskrcnn_resnet50_fpn_v2)


def build_detectron2(**options: object) -> TwoStage:
    """Return detectron2's network with random weights; options are fields of `Detectron2Config`."""
    return build_two_stage(parse_options(Detectron2Config, options))
