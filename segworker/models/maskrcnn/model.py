"""Mask R-CNN (He et al., 2017, arXiv:1703.06870) as torchvision and as detectron2 build it.

Both are `TwoStage` models. They differ in class order, in where the ResNet strides, in RoIAlign's half pixel, in
anchors, and in whether the background has a box of its own: weights of the one are of no use to the other.
"""

from __future__ import annotations

from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2

from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.detectron2 import RULE, SPEC, Detectron2Config
from segworker.models.common.options import parse_options
from segworker.models.common.roi_heads import RoIHeads
from segworker.models.common.rpn import build_rpn
from segworker.models.common.torchvision_nets import (
    TorchvisionOptions,
    categories_of,
    v1_backbone,
    v2_network,
    wrap,
)
from segworker.models.common.two_stage import TwoStage


def build_v1(**options: object) -> TwoStage:
    """Return torchvision's first network with random weights; options are fields of `TorchvisionOptions`."""
    chosen = parse_options(TorchvisionOptions, options)
    network = MaskRCNN(v1_backbone(chosen), chosen.num_classes, **chosen.settings)
    return wrap(network, categories_of(chosen))


def build_v2(**options: object) -> TwoStage:
    """Return torchvision's improved network with random weights; options are fields of `TorchvisionOptions`."""
    chosen = parse_options(TorchvisionOptions, options)
    return wrap(v2_network(maskrcnn_resnet50_fpn_v2, chosen), categories_of(chosen))


def build_detectron2(**options: object) -> TwoStage:
    """Return detectron2's network with random weights; options are fields of `Detectron2Config`."""
    config = parse_options(Detectron2Config, options)
    return TwoStage(
        resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm, stride_in_1x1=True),
        build_rpn(config.rpn),
        RoIHeads(config.roi()),
        categories=name_classes(config.num_classes, config.class_names, default=COCO_THINGS),
        labels=range(config.num_classes),
        spec=SPEC,
        rule=RULE,
    )
