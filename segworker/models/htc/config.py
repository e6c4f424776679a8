"""Sizes and options of the Hybrid Task Cascade, and what it is to be fed."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.coco import NUM_COCO
from segworker.models.common.input import IMAGENET_BYTES
from segworker.models.common.rpn import RPNConfig
from segworker.types import InputSpec

RULE = IMAGENET_BYTES
"Short side 800, longer side at most 1,333, RGB, padded to multiples of 32."
SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
IOUS = (0.5, 0.6, 0.7)
"From which overlap on a box counts as on an object, for each stage."
DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"By which offsets of x, y, width and height are multiplied in each stage."
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
SEMANTIC_WEIGHT = 0.2
BOX_BETA, RPN_BETA = 1.0, 1 / 9
"Where the smooth L1 losses turn linear."
IGNORED = 255
"In the semantic target: pixels that nobody labelled."


@dataclass(frozen=True, slots=True)
class HTCConfig:
    """The defaults are those of the official R50 20e checkpoint, but for `score_threshold` (0.001 there, for AP)."""

    num_classes: int = NUM_COCO
    "Without the background."
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    average_masks: bool = True
    "Masks are the mean of the three stages' probabilities, as in the paper; False: the last stage's (mmdetection 3.3)."
    proposals: int = 1000
    "Of an image, that the second stage looks at."
    samples: int = 512
    "Proposals of an image that the losses look at."
    backbone: str = "resnet50"
    norm: str = "batch"
    "'batch', or 'group' to train with small batches."
    fpn_channels: int = 256
    box_units: int = 1024
    anchor_px: float = 32.0
    "Anchor side of the finest level; each further level has twice that."
    num_semantic: int = 183
    "Classes of the semantic branch, COCO-stuff's by default; for training only."

    def __post_init__(self) -> None:
        counts = (self.num_classes, self.detections, self.proposals, self.samples, self.num_semantic)
        if min(counts) < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"all numbers are at least 1 and score_threshold is in 0..1, got {self}; check the model options"
            )

    @property
    def rpn(self) -> RPNConfig:
        """The proposal network."""
        return RPNConfig(
            channels=self.fpn_channels,
            anchor_sizes_px=tuple(self.anchor_px * 2**level for level in range(5)),
            top_n_train=(2 * self.proposals, 2 * self.proposals),
            top_n_test=(self.proposals, self.proposals),
        )
