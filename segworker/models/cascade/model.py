"""Cascade Mask R-CNN (Cai and Vasconcelos, 2018, arXiv:1712.00726) in detectron2's layout."""

from __future__ import annotations

from segworker.models.cascade.config import IOUS
from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.detectron2 import RULE, SPEC, Detectron2Config
from segworker.models.common.options import parse_options
from segworker.models.common.roi_heads import RoIHeads
from segworker.models.common.rpn import build_rpn
from segworker.models.common.two_stage import TwoStage


def build_cascade(**options: object) -> TwoStage:
    """Return the network with random weights; options are fields of `Detectron2Config`."""
    config = parse_options(Detectron2Config, options)
    return TwoStage(
        resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm, stride_in_1x1=True),
        build_rpn(config.rpn),
        RoIHeads(config.roi(ious=IOUS, one_box=True)),
        categories=name_classes(config.num_classes, config.class_names, default=COCO_THINGS),
        labels=range(config.num_classes),
        spec=SPEC,
        rule=RULE,
    )
