"""torchvision's Faster R-CNN with a ResNet-50 pyramid, v1 and v2."""

from segworker.models.common.torchvision_nets import LICENCE, NARROW_V1, NARROW_V2
from segworker.models.fasterrcnn.model import build_v1, build_v2
from segworker.models.registry import ModelEntry, register

__all__ = ["build_v1", "build_v2"]

register(
    ModelEntry(
        name="fasterrcnn_resnet50_fpn",
        build=build_v1,
        summary="Faster R-CNN (boxes), ResNet-50 FPN, as torchvision's COCO_V1 weights want it",
        tasks=("boxes",),
        num_parameters=41_755_286,
        licence=LICENCE,
        official="fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        published="box AP 37.0 (COCO val, torchvision)",
        narrow=NARROW_V1,
    )
)
register(
    ModelEntry(
        name="fasterrcnn_resnet50_fpn_v2",
        build=build_v2,
        summary="Faster R-CNN (boxes), ResNet-50 FPN with torchvision's improved heads and recipe (COCO_V1 of v2)",
        tasks=("boxes",),
        num_parameters=43_712_278,
        licence=LICENCE,
        official="fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        published="box AP 46.7 (COCO val, torchvision)",
        narrow=NARROW_V2,
    )
)
