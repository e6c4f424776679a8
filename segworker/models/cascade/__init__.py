"""Cascade Mask R-CNN with a ResNet-50 pyramid in detectron2's layout."""

from segworker.models.cascade.model import build_cascade
from segworker.models.cascade.weights import DETECTRON2
from segworker.models.common.detectron2 import LICENCE, NARROW
from segworker.models.registry import ModelEntry, register

__all__ = ["build_cascade"]

register(
    ModelEntry(
        name="cascade_maskrcnn_r50_fpn",
        build=build_cascade,
        summary="Cascade Mask R-CNN, ResNet-50 FPN, as detectron2's 3x weights want it",
        tasks=("boxes", "instances"),
        num_parameters=71_984_926,
        licence=LICENCE,
        official="model_final_480dd8.pkl",
        published="box AP 44.3, mask AP 38.5 (COCO val, detectron2's model zoo)",
        layouts=(DETECTRON2,),
        narrow=NARROW,
    )
)
