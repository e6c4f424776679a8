"""Sizes and options of BlendMask, and what it is to be fed."""

from __future__ import annotations

from dataclasses import dataclass

from segworker.errors import ConfigError
from segworker.models.common.coco import NUM_COCO
from segworker.models.common.fcos import FCOSConfig
from segworker.models.common.input import CAFFE_BYTES
from segworker.types import InputSpec

RULE = CAFFE_BYTES
"Short side 800 (RT: 440 to 550), longer side at most 1,333, BGR bytes, padded to multiples of 32."
SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
STRIDES_PX = (8, 16, 32, 64, 128)
LIMITS_PX = (64.0, 128.0, 256.0, 512.0)
ATTENTION, MASK = 14, 56
"Cells along a side of an object's attention maps, and of its mask."
MASK_WEIGHT, SEMANTIC_WEIGHT = 1.0, 0.3
MASKS_PER_BATCH = 500
"Cells that the mask loss looks at, at most."


@dataclass(frozen=True, slots=True)
class BlendMaskConfig:
    """The defaults are those of the official R50 3x checkpoint."""

    num_classes: int = NUM_COCO
    "Without the background."
    class_names: tuple[str, ...] = ()
    "Their names; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    "Of class times centerness; an object's score is the root of the product."
    nms_iou: float = 0.6
    backbone: str = "resnet50"
    norm: str = "frozen"
    "'frozen' for the official checkpoints; 'batch' or 'group' to train from random weights."
    channels: int = 256
    levels: int = 5
    "From stride 8 on."
    convolved_levels: bool = True
    "Levels of strides 64 and 128 come from convolutions; False: the one of stride 64 by subsampling."
    shared_convs: int = 0
    convs: int = 4
    bases: int = 4
    basis_channels: int = 128
    basis_norm: str = "batch"
    "'batch', or 'group' to train with small batches."
    basis_convs: int = 3

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.detections < 1 or not 0 <= self.score_threshold <= 1:
            raise ConfigError(
                f"num_classes and detections are at least 1 and score_threshold in 0..1, got {self}; "
                "check the model options"
            )
        if not 4 <= self.levels <= len(STRIDES_PX) or self.basis_norm not in ("batch", "group"):
            raise ConfigError(f"levels is 4 or 5 and basis_norm 'batch' or 'group', got {self}")

    @property
    def fcos(self) -> FCOSConfig:
        """The detector."""
        return FCOSConfig(
            num_classes=self.num_classes,
            channels=self.channels,
            shared_convs=self.shared_convs,
            convs=self.convs,
            strides_px=STRIDES_PX[: self.levels],
            limits_px=LIMITS_PX[: self.levels - 1],
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            detections=self.detections,
        )


RT = BlendMaskConfig(norm="batch", levels=4, convolved_levels=False, shared_convs=3, convs=0, basis_convs=2)
"The real-time variant's. Its batch norms and its subsampling are inferred from the published number of parameters."
