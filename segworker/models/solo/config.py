"""Sizes and options of SOLO, Decoupled SOLO and SOLOv2, and what they are to be fed."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.coco import NUM_COCO
from segworker.models.common.input import IMAGENET_BYTES
from segworker.types import InputSpec

RULE = IMAGENET_BYTES
"Short side 800, longer side at most 1,333, RGB, padded to multiples of 32."
SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=800, overlap_px=224, min_score=0.3)
"Grids divide the tile, whatever its size: a tile of about 800 px is what the published weights have seen."
STRIDES_PX = (8, 8, 16, 32, 32)
"Of the five levels, after the finest is halved and the coarsest doubled: a mask has more pixels than its stride."
SCALE_RANGES_PX = ((1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 768.0), (384.0, 2048.0))
"Objects whose square root of box area is in a level's range are taught to that level."
CENTRE = 0.2
"Share of an object's box around its centre of mass whose grid cells stand for it."
DICE_WEIGHT, FOCAL_WEIGHT = 3.0, 1.0
MIN_TARGET_PX = 10
"Smaller objects teach nothing."


@dataclass(frozen=True, slots=True)
class SoloConfig:
    """The defaults are those of the official SOLO R50 checkpoint."""

    variant: str = "solo"
    "'solo', 'decoupled' or 'solov2'."
    num_classes: int = NUM_COCO
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.1
    "Grid cells with a lower class probability are not looked at."
    min_final_score: float = 0.05
    "Objects whose score falls below it by Matrix NMS are left out."
    candidates: int = 500
    "Best masks that Matrix NMS looks at."
    sigma: float = 2.0
    "Of its Gaussian kernel."
    backbone: str = "resnet50"
    norm: str = "batch"
    "'batch', or 'group' to train with small batches."
    fpn_channels: int = 256
    head_channels: int = 256
    head_convs: int = 7
    kernel_channels: int = 256
    "SOLOv2: of the mask features, and so of each kernel."
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    "Cells along a side of the image, for each level."

    def __post_init__(self) -> None:
        if self.variant not in ("solo", "decoupled", "solov2") or len(self.grids) != len(STRIDES_PX):
            raise ConfigError(
                f"variant is solo, decoupled or solov2, and grids has a number for each of {len(STRIDES_PX)} levels, "
                f"got {self}; check the model options"
            )
        if self.num_classes < 1 or self.detections < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"num_classes and detections are at least 1 and score_threshold in 0..1, got {self}; "
                "check the model options"
            )


SOLOV2 = SoloConfig(variant="solov2", head_channels=512, head_convs=4)
"The official SOLOv2 R50 checkpoint's."
