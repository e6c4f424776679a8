"""Mask R-CNN with a ResNet-50 pyramid: torchvision's v1 and v2, and detectron2's."""

from segworker.models.maskrcnn.model import build_detectron2, build_v1, build_v2
from segworker.models.maskrcnn.weights import DETECTRON2
from segworker.models.registry import ModelEntry, register

__all__ = ["build_detectron2", "build_v1", "build_v2"]

register(
    ModelEntry(
        name="maskrcnn_resnet50_fpn",
        build=build_v1,
        summary="Mask R-CNN, ResNet-50 FPN, as torchvision's COCO_V1 weights want it",
        tasks=("boxes", "instances"),
        num_parameters=44_401_393,
        licence="code and official weights BSD-3-Clause (torchvision)",
        official="maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        published="box AP 37.9, mask AP 34.6 (COCO val, torchvision)",
        narrow={
            "backbone": "resnet18",
            "frozen_norm": False,
            "num_classes": 3,
            "proposals": 100,
            "detections": 10,
            "samples": 64,
        },
    )
)
register(
    ModelEntry(
        name="maskrcnn_resnet50_fpn_v2",
        build=build_v2,
        summary="Mask R-CNN, ResNet-50 FPN with torchvision's improved heads and recipe (COCO_V1 of v2)",
        tasks=("boxes", "instances"),
        num_parameters=46_359_409,
        licence="code and official weights BSD-3-Clause (torchvision)",
        official="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        published="box AP 47.4, mask AP 41.8 (COCO val, torchvision)",
        narrow={"num_classes": 3, "proposals": 50, "detections": 5, "samples": 32},
    )
)
register(
    ModelEntry(
        name="maskrcnn_d2_r50_fpn",
        build=build_detectron2,
        summary="Mask R-CNN, ResNet-50 FPN, as detectron2's 3x weights want it",
        tasks=("boxes", "instances"),
        num_parameters=44_343_216,
        licence="code Apache-2.0; official weights CC BY-SA 3.0 (detectron2)",
        official="model_final_f10217.pkl",
        published="box AP 41.0, mask AP 37.2 (COCO val, detectron2's model zoo)",
        layouts=(DETECTRON2,),
        narrow={
            "backbone": "resnet18",
            "norm": "group",
            "fpn_channels": 64,
            "box_units": 128,
            "num_classes": 2,
            "anchor_px": 16,
            "proposals": 100,
            "detections": 10,
            "samples": 64,
        },
    )
)
