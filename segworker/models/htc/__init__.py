"""Hybrid Task Cascade with a ResNet-50 pyramid in mmdetection's layout."""

from segworker.models.htc.model import build_htc
from segworker.models.htc.weights import MMDETECTION
from segworker.models.registry import ModelEntry, register

__all__ = ["build_htc"]

register(
    ModelEntry(
        name="htc_r50_fpn",
        build=build_htc,
        summary="Hybrid Task Cascade with semantic branch, ResNet-50 FPN, as mmdetection's 20e weights want it",
        tasks=("boxes", "instances"),
        num_parameters=80_258_293,
        licence="code and official weights Apache-2.0 (mmdetection)",
        official="htc_r50_fpn_20e_coco_20200319-fe28c577.pth",
        published="box AP 43.3, mask AP 38.3 (COCO val, mmdetection)",
        layouts=(MMDETECTION,),
        narrow={
            "backbone": "resnet18",
            "norm": "group",
            "fpn_channels": 64,
            "box_units": 128,
            "num_classes": 2,
            "num_semantic": 4,
            "anchor_px": 16,
            "proposals": 100,
            "detections": 10,
            "samples": 64,
        },
    )
)
