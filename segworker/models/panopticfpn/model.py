"""Panoptic FPN (Kirillov et al., 2019, arXiv:1901.02446) in detectron2's layout.

A Mask R-CNN, and on the same pyramid a semantic head whose class 0 stands for all things. The two are joined behind the
stitch, by the rule of `decode.combine`.

B tiles, C classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_STUFF, COCO_THINGS, name_classes
from segworker.models.common.detectron2 import RULE, SPEC
from segworker.models.common.options import parse_options
from segworker.models.common.roi_heads import RoIHeads
from segworker.models.common.rpn import build_rpn
from segworker.models.common.two_stage import Target, TwoStage
from segworker.models.panopticfpn.config import PanopticFPNConfig
from segworker.models.panopticfpn.decode import with_semantic
from segworker.models.panopticfpn.loss import semantic_loss
from segworker.types import Category, Prediction

STRIDE = 4


class SemanticHead(nn.Module):
    """Each level is brought to stride 4 in steps of a 3x3 convolution and a doubling; the sum tells the class."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(*_steps(channels, width, doublings)) for doublings in range(4))
        self.predictor = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return (B, C, H / 4, W / 4) logits of levels with strides 4 to 32."""
        total = self.levels[0](levels[0])
        for branch, features in zip(self.levels[1:], levels[1:], strict=True):
            total = total + branch(features)
        logits: Tensor = self.predictor(total)
        return logits


def _steps(channels: int, width: int, doublings: int) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for k in range(max(1, doublings)):
        conv = nn.Conv2d(width if k else channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        steps.append(nn.Sequential(conv, nn.GroupNorm(32, width), nn.ReLU()))
        if doublings:
            steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return steps


class PanopticFPN(TwoStage):
    """A `TwoStage` model with a semantic head."""

    def __init__(self, config: PanopticFPNConfig) -> None:
        things = name_classes(config.num_classes, config.class_names, default=COCO_THINGS)
        self_stuff = stuff_classes(config, things)
        super().__init__(
            resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm, stride_in_1x1=True),
            build_rpn(config.rpn),
            RoIHeads(config.roi()),
            categories=things,
            labels=range(config.num_classes),
            spec=SPEC,
            rule=RULE,
        )
        self.categories = (*things, *self_stuff)
        self.semantic = SemanticHead(config.fpn_channels, config.semantic_channels, config.num_stuff + 1)
        self.semantic_ids = (0, *(stuff.id for stuff in self_stuff))

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the dense part of the network on normalised images, as `TwoStage` does, and `semantic` logits."""
        found = super().forward(images_BCHW)
        return {**found, "semantic": self.semantic([found[f"features_{level}"] for level in range(4)])}

    def dense_outputs(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `semantic` (B, C, H / 4, W / 4) logits."""
        return {"semantic": self.semantic(list(features.values())[:4])}

    def dense_losses(self, features: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the semantic loss; targets have `semantic` (H, W), see `semantic_loss`."""
        logits = F.interpolate(
            self.semantic(list(features.values())[:4]), scale_factor=STRIDE, mode="bilinear", align_corners=False
        )
        return {"loss_semantic": semantic_loss(logits, [target["semantic"] for target in targets], self.semantic_ids)}

    def to_prediction(self, found: Mapping[str, Tensor], valid_HW: Tensor) -> Prediction:
        """Return one tile's detections and the probabilities of the semantic classes."""
        return with_semantic(super().to_prediction(found, valid_HW), found["semantic"], self.semantic_ids)


def stuff_classes(config: PanopticFPNConfig, things: Sequence[Category]) -> tuple[Category, ...]:
    """Return the stuff classes; without COCO's number, their ids go on behind those of the things."""
    if things == COCO_THINGS and config.num_stuff == len(COCO_STUFF) and not config.stuff_names:
        return COCO_STUFF
    first = max(thing.id for thing in things)
    named = name_classes(config.num_stuff, config.stuff_names, default=())
    return tuple(replace(stuff, id=first + stuff.id, isthing=False) for stuff in named)


def build_panoptic_fpn(**options: object) -> PanopticFPN:
    """Return the network with random weights; options are fields of `PanopticFPNConfig`."""
    return PanopticFPN(parse_options(PanopticFPNConfig, options))
