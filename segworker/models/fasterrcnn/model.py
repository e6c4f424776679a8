"""Faster R-CNN (Ren et al., 2015, arXiv:1506.01497) as torchvision builds it: boxes, no masks."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn_v2

from segworker.models.common.options import parse_options
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
    network = FasterRCNN(v1_backbone(chosen), chosen.num_classes, **chosen.settings)
    return wrap(network, categories_of(chosen))


def build_v2(**options: object) -> TwoStage:
    """Return torchvision's improved network with random weights; options are fields of `TorchvisionOptions`."""
    chosen = parse_options(TorchvisionOptions, options)
    return wrap(v2_network(fasterrcnn_resnet50_fpn_v2, chosen), categories_of(chosen))
