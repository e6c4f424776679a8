"""Two-stage models in detectron2's layout: what is common to Mask R-CNN, Cascade Mask R-CNN and Panoptic FPN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.backbone import resnet_fpn
from segworker.models.common.coco import COCO_THINGS, NUM_COCO, name_classes
from segworker.models.common.input import CAFFE_BYTES
from segworker.models.common.roi_heads import RoIConfig, RoIHeads
from segworker.models.common.rpn import RPNConfig, build_rpn
from segworker.models.common.two_stage import TwoStage
from segworker.types import InputSpec

SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
RULE = CAFFE_BYTES
"Short side 800, longer side at most 1,333, BGR bytes, padded to multiples of 32."
LICENCE = "code Apache-2.0; official weights CC BY-SA 3.0 (detectron2)"
NARROW: Mapping[str, object] = {
    "backbone": "resnet18",
    "norm": "group",
    "fpn_channels": 64,
    "box_units": 128,
    "num_classes": 2,
    "anchor_px": 16,
    "proposals": 100,
    "detections": 10,
    "samples": 64,
}
"A small variant."


@dataclass(frozen=True, slots=True)
class Detectron2Config:
    """Sizes and options; the defaults are those of the official R50-FPN 3x checkpoints."""

    num_classes: int = NUM_COCO
    "Countable classes, without the background."
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    proposals: int = 1000
    "Of an image, that the second stage looks at."
    samples: int = 512
    "Proposals of an image that the losses look at."
    backbone: str = "resnet50"
    norm: str = "frozen"
    "'frozen' for the official checkpoints; 'batch' or 'group' to train from random weights."
    fpn_channels: int = 256
    box_units: int = 1024
    anchor_px: float = 32.0
    "Anchor side of the finest level; each further level has twice that."

    def __post_init__(self) -> None:
        counts = (self.num_classes, self.detections, self.proposals, self.samples)
        if min(counts) < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                "num_classes, detections, proposals and samples are at least 1 and score_threshold in 0..1, "
                f"got {self}; "
                "check the model options"
            )

    @property
    def rpn(self) -> RPNConfig:
        """The proposal network."""
        sizes = tuple(self.anchor_px * 2**level for level in range(5))
        return RPNConfig(
            channels=self.fpn_channels,
            anchor_sizes_px=sizes,
            top_n_train=(2 * self.proposals, self.proposals),
            top_n_test=(self.proposals, self.proposals),
        )

    def roi(self, *, ious: tuple[float, ...] = (0.5,), one_box: bool = False) -> RoIConfig:
        """Return the second stage."""
        return RoIConfig(
            num_classes=self.num_classes,
            channels=self.fpn_channels,
            units=self.box_units,
            ious=ious,
            one_box=one_box,
            samples=self.samples,
            score_threshold=self.score_threshold,
            detections=self.detections,
        )


def build_two_stage(config: Detectron2Config, *, ious: tuple[float, ...] = (0.5,), one_box: bool = False) -> TwoStage:
    """Return Mask R-CNN, or a cascade of several box stages, with random weights.

    Args:
        config: sizes and options.
        ious: for each box stage, from which overlap on a box counts as on an object.
        one_box: one box for all classes instead of one for each.
    """
    return TwoStage(
        resnet_fpn(config.backbone, channels=config.fpn_channels, norm=config.norm, stride_in_1x1=True),
        build_rpn(config.rpn),
        RoIHeads(config.roi(ious=ious, one_box=one_box)),
        categories=name_classes(config.num_classes, config.class_names, default=COCO_THINGS),
        labels=range(config.num_classes),
        spec=SPEC,
        rule=RULE,
    )
