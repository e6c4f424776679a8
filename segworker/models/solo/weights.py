"""The official files of the authors: mmdetection's names of its first version, heads under `bbox_head`."""

from __future__ import annotations

import re

from segworker.models.common.layouts import MMDET_BACKBONE, MMDET_MARKER, Layout, Rename

_TOWERS = {
    "ins_convs": "mask_tower",
    "ins_convs_x": "x_tower",
    "ins_convs_y": "y_tower",
    "cate_convs": "class_tower",
    "kernel_convs": "kernel_tower",
}


def _step(match: re.Match[str]) -> str:
    return f"head.features.levels.{match[1]}.{2 * int(match[2])}."  # a doubling behind each convolution


_HEADS: tuple[Rename, ...] = (
    (r"^bbox_head\.(\w+_convs|ins_convs_[xy])\.(\d)\.", lambda match: f"head.{_TOWERS[match[1]]}.{match[2]}."),
    (r"^bbox_head\.solo_ins_list\.", "head.masks."),
    (r"^bbox_head\.dsolo_ins_list_([xy])\.", r"head.\1_masks."),
    (r"^bbox_head\.d?solo_cate\.", "head.classes."),
    (r"^bbox_head\.solo_kernel\.", "head.kernels."),
    (r"^mask_feat_head\.convs_all_levels\.0\.conv0\.", "head.features.levels.0."),
    (r"^mask_feat_head\.convs_all_levels\.(\d)\.conv(\d)\.", _step),
    (r"^mask_feat_head\.conv_pred\.0\.", "head.features.last."),
    (r"^(head\..*\.)conv\.", r"\g<1>0."),
    (r"^(head\..*\.)gn\.", r"\g<1>1."),
)
OFFICIAL = Layout("SOLO", MMDET_MARKER, (*MMDET_BACKBONE, *_HEADS))
