"""Official files of Mask R-CNN. torchvision's load name by name, detectron2's by its layout."""

from __future__ import annotations

from segworker.models.common.layouts import (
    DETECTRON2_BACKBONE,
    DETECTRON2_HEADS,
    DETECTRON2_IGNORED,
    DETECTRON2_MARKER,
    Layout,
)

DETECTRON2 = Layout("detectron2", DETECTRON2_MARKER, (*DETECTRON2_BACKBONE, *DETECTRON2_HEADS), DETECTRON2_IGNORED)
