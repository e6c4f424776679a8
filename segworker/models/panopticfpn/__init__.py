"""Panoptic FPN with a ResNet-50 pyramid in detectron2's layout."""

from segworker.models.panopticfpn.model import build_panoptic_fpn
from segworker.models.panopticfpn.weights import DETECTRON2
from segworker.models.registry import ModelEntry, register

__all__ = ["build_panoptic_fpn"]

register(
    ModelEntry(
        name="panoptic_fpn_r50",
        build=build_panoptic_fpn,
        summary="Panoptic FPN (things and stuff), ResNet-50, as detectron2's 3x weights want it",
        tasks=("boxes", "instances", "semantic", "panoptic"),
        num_parameters=45_973_990,
        licence="code Apache-2.0; official weights CC BY-SA 3.0 (detectron2)",
        official="model_final_c10459.pkl",
        published="PQ 41.5, box AP 40.0, mask AP 36.5 (COCO val, detectron2's model zoo)",
        layouts=(DETECTRON2,),
        narrow={
            "backbone": "resnet18",
            "norm": "group",
            "fpn_channels": 64,
            "box_units": 128,
            "semantic_channels": 32,
            "num_classes": 2,
            "num_stuff": 2,
            "anchor_px": 16,
            "proposals": 100,
            "detections": 10,
            "samples": 64,
        },
    )
)
