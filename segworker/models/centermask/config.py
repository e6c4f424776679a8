"""Sizes and options of CenterMask2, and what it is to be fed."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.coco import NUM_COCO
from segworker.models.common.fcos import FCOSConfig
from segworker.models.common.input import CAFFE_BYTES
from segworker.types import InputSpec

RULE = CAFFE_BYTES
"Short side 800 (Lite: 600), longer side at most 1,333 (1,000), BGR bytes, padded to multiples of 32."
SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
MASK_IOU = 0.5
"From which overlap on a box is taught the mask of an object."
SAMPLES = 128
"Boxes of an image that the mask losses look at."


@dataclass(frozen=True, slots=True)
class CenterMaskConfig:
    """The defaults are those of the official V2-39 FPN 3x checkpoint."""

    num_classes: int = NUM_COCO
    "Without the background."
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    detections: int = 50
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    "Of the class alone; an object's score is the root of class times centerness."
    mask_scores: bool = True
    "Scores are multiplied by the overlap that the network expects of its mask, as for the published mask AP."
    nms_iou: float = 0.6
    backbone: str = "vovnet39"
    norm: str = "frozen"
    "'frozen' for the official checkpoints; 'batch' or 'group' to train from random weights."
    channels: int = 256
    "Of the pyramid and the towers."
    convs: int = 4
    "Of each tower, and of the mask head."
    units: int = 1024
    "Of the fully connected layers that tell a mask's overlap."

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.detections < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"num_classes and detections are at least 1 and score_threshold in 0..1, got {self}; "
                "check the model options"
            )

    @property
    def fcos(self) -> FCOSConfig:
        """The detector."""
        return FCOSConfig(
            num_classes=self.num_classes,
            channels=self.channels,
            convs=self.convs,
            scales=True,
            weigh_first=False,
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            detections=self.detections,
        )


LITE = CenterMaskConfig(channels=128, convs=2)
"The Lite variant's."
