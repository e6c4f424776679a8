"""Hybrid Task Cascade (Chen et al., 2019, arXiv:1901.07518) with the semantic branch, in mmdetection's layout."""

from __future__ import annotations

from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.options import parse_options
from segworker.models.common.rpn import build_rpn
from segworker.models.common.two_stage import TwoStage
from segworker.models.htc.config import RPN_BETA, RULE, SPEC, HTCConfig
from segworker.models.htc.heads import HTCHeads


def build_htc(**options: object) -> TwoStage:
    """Return the network with random weights; options are fields of `HTCConfig`."""
    config = parse_options(HTCConfig, options)
    return TwoStage(
        resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm),
        build_rpn(config.rpn, beta=RPN_BETA),
        HTCHeads(config),
        categories=name_classes(config.num_classes, config.class_names, default=COCO_THINGS),
        labels=range(config.num_classes),
        spec=SPEC,
        rule=RULE,
    )
