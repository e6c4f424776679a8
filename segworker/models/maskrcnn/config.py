"""Sizes of a compact Mask R-CNN; `common.torchvision_nets` and `common.detectron2` have those of the published ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MaskRCNNConfig:
    """Sizes of a compact Mask R-CNN built from torchvision's parts (He et al., 2017, arXiv:1703.06870)."""

    num_classes: int = 2
    "Classes including the background, which is class 0."
    fpn_channels: int = 96
    "Channels of every pyramid level."
    body_stages: tuple[int, ...] = (1, 2, 3)
    "ResNet-18 stages used, 1-based: stage 1 has stride 4, each further one twice that."
    anchor_sizes_px: tuple[tuple[float, ...], ...] = ((7.0, 13.0), (24.0, 40.0), (64.0, 110.0))
    "Anchor sides of each level."
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    "Height over width."
    roi_canonical_px: int = 112
    "Boxes of this side are pooled from the level of stride 16."
    box_head_units: int = 256
    mask_head_layers: tuple[int, ...] = (96, 96, 96)
    "Output channels of the 3x3 convolutions of the mask head."
    rpn_samples: int = 192
    "Anchors of an image that the proposal loss looks at."
    rpn_fg_iou: float = 0.6
    box_samples: int = 112
    "Proposals of an image that the box loss looks at; a quarter of them, at most, reach the mask loss."
    rpn_top_n_train: int = 600
    rpn_top_n_test: int = 3000
    detections: int = 1000
    "Objects of a tile, at most."
    score_threshold: float = 0.05
    nms_iou: float = 0.4
    image_mean: tuple[float, float, float] = (0.25, 0.25, 0.25)
    "Subtracted from images in 0..1."
    image_std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if len(self.anchor_sizes_px) != len(self.body_stages):
            raise ValueError(
                f"each level has its own anchors, got {len(self.anchor_sizes_px)} for {len(self.body_stages)} levels"
            )

    @property
    def stride(self) -> int:
        """Pixels that the deepest level sums up in one cell."""
        return 1 << (self.body_stages[-1] + 1)
