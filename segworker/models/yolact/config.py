"""Sizes and options of YOLACT, and what it is to be fed."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.coco import NUM_COCO
from segworker.models.common.input import InputRule
from segworker.types import InputSpec

RULE = InputRule(
    mean=(123.68, 116.78, 103.94),
    std=(58.40, 57.12, 57.38),
    scale=255.0,
    resize="stretch",
    size_px=(550, 550),
    pad_multiple=1,
)
SPEC = InputSpec(num_bands=3, scaling="unit", stride=2, cut_trust_px=16, tile_px=550, overlap_px=150, min_score=0.15)
"The default tile is the paper's image; other sizes work, with priors of the same pixels."


@dataclass(frozen=True, slots=True)
class YolactConfig:
    """The defaults are those of the official R50 checkpoint."""

    num_classes: int = NUM_COCO
    "Without the background."
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    "Candidates whose best class is below it are not looked at."
    nms_iou: float = 0.5
    per_class: int = 200
    "Best candidates of each class that the suppression looks at."
    backbone: str = "resnet50"
    norm: str = "batch"
    "'batch', or 'group' to train with small batches."
    channels: int = 256
    prototypes: int = 32
    prior_px: float = 24.0
    "Side of the finest level's prior; each further level has twice that."
    ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    "Width over height. As in the published network the square roots scale both sides: all priors are squares."

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.detections < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"num_classes and detections are at least 1 and score_threshold in 0..1, got {self}; "
                "check the model options"
            )


POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
NEGATIVES_PER_POSITIVE = 3
MASKS_PER_IMAGE = 100
"Positive priors of an image that the mask loss looks at."
CLASS_WEIGHT, BOX_WEIGHT, MASK_WEIGHT, SEMANTIC_WEIGHT = 1.0, 1.5, 6.125, 1.0
