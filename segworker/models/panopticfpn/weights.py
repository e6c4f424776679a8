"""The official file of detectron2: its Mask R-CNN's layout, and the semantic head."""

from __future__ import annotations

from segworker.models.common.layouts import (
    DETECTRON2_BACKBONE,
    DETECTRON2_HEADS,
    DETECTRON2_IGNORED,
    DETECTRON2_MARKER,
    Layout,
    Rename,
    shift,
)

_SEMANTIC: tuple[Rename, ...] = (
    (r"^sem_seg_head\.p(\d\.\d)\.norm\.", r"sem_seg_head.p\1.1."),
    (r"^sem_seg_head\.p(\d\.\d)\.(weight|bias)$", r"sem_seg_head.p\1.0.\2"),
    (r"^sem_seg_head\.p(\d)", shift(-2, "semantic.levels.")),
    (r"^sem_seg_head\.", "semantic."),
)
DETECTRON2 = Layout(
    "detectron2", DETECTRON2_MARKER, (*DETECTRON2_BACKBONE, *DETECTRON2_HEADS, *_SEMANTIC), DETECTRON2_IGNORED
)
