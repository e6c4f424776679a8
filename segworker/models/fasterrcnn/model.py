"""Faster R-CNN (Ren et al., 2015, arXiv:1506.01497) as torchvision builds it: boxes, no masks."""

from __future__ import annotations

from functools import partial

from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn_v2

from segworker.models.common import torchvision_nets

build_v1 = partial(torchvision_nets.build_v1, FasterRCNN)
build_v2 = partial(torchvision_nets.build_v2, fasterrcnn_resnet50_fpn_v2)
