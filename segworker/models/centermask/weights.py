"""The official files of CenterMask2: VoVNet's layers under names with slashes, detectron2's names for all else."""

from __future__ import annotations

import re

from segworker.models.common.layouts import DETECTRON2_IGNORED, Layout, Rename, detectron2_pyramid, shift

_PARTS = {"conv": 0, "norm": 1}


def _stem(match: re.Match[str]) -> str:
    return f"backbone.body.stem.{int(match[1]) - 1}.{_PARTS[match[2]]}."


def _block(match: re.Match[str]) -> str:
    return f"backbone.body.stage{match[1]}.{match[2]}."  # the first child of a stage is its pooling


def _conv(match: re.Match[str]) -> str:
    return f"{match[1]}.convs.{match[2]}.{_PARTS[match[3]]}."


_BODY: tuple[Rename, ...] = (
    (r"^backbone\.bottom_up\.stem\.stem_(\d)/(conv|norm)\.", _stem),
    (r"^backbone\.bottom_up\.stage(\d)\.OSA\d_(\d)\.", _block),
    (r"^(backbone\.body\.stage\d\.\d)\.layers\.(\d)\.\w+/(conv|norm)\.", _conv),
    (
        r"^(backbone\.body\.stage\d\.\d)\.concat\.\w+/(conv|norm)\.",
        lambda match: f"{match[1]}.concat.{_PARTS[match[2]]}.",
    ),
    (r"^(backbone\.body\.stage\d\.\d)\.ese\.fc\.", r"\1.weigh."),
)
_HEADS: tuple[Rename, ...] = (
    (r"^proposal_generator\.fcos_head\.", "fcos."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", shift(-1, "mask_head.convs.", ".")),
    (r"^roi_heads\.mask_head\.spatialAtt\.conv\.", "mask_head.attention."),
    (r"^roi_heads\.mask_head\.", "mask_head."),
    (r"^roi_heads\.maskiou_head\.maskiou_fcn(\d)\.", shift(-1, "iou_head.convs.", ".")),
    (r"^roi_heads\.maskiou_head\.maskiou_fc(\d)\.", r"iou_head.fc\1."),
    (r"^roi_heads\.maskiou_head\.maskiou\.", "iou_head.last."),
)
OFFICIAL = Layout(
    "CenterMask2",
    "backbone.bottom_up.stem.stem_1/conv.weight",
    (*_BODY, *detectron2_pyramid(3), *_HEADS),
    DETECTRON2_IGNORED,
)
