"""Mask R-CNN with a ResNet-50 pyramid: torchvision's v1 and v2, and detectron2's."""

from segworker.models.common import detectron2, torchvision_nets
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
        licence=torchvision_nets.LICENCE,
        official="maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        published="box AP 37.9, mask AP 34.6 (COCO val, torchvision)",
        narrow=torchvision_nets.NARROW_V1,
    )
)
register(
    ModelEntry(
        name="maskrcnn_resnet50_fpn_v2",
        build=build_v2,
        summary="Mask R-CNN, ResNet-50 FPN with torchvision's improved heads and recipe (COCO_V1 of v2)",
        tasks=("boxes", "instances"),
        num_parameters=46_359_409,
        licence=torchvision_nets.LICENCE,
        official="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
        published="box AP 47.4, mask AP 41.8 (COCO val, torchvision)",
        narrow=torchvision_nets.NARROW_V2,
    )
)
register(
    ModelEntry(
        name="maskrcnn_d2_r50_fpn",
        build=build_detectron2,
        summary="Mask R-CNN, ResNet-50 FPN, as detectron2's 3x weights want it",
        tasks=("boxes", "instances"),
        num_parameters=44_343_216,
        licence=detectron2.LICENCE,
        official="model_final_f10217.pkl",
        published="box AP 41.0, mask AP 37.2 (COCO val, detectron2's model zoo)",
        layouts=(DETECTRON2,),
        narrow=detectron2.NARROW,
    )
)
