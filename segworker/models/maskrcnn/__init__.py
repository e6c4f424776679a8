"""torchvision's Mask R-CNN with a ResNet-50 pyramid, v1 and v2."""

from functools import partial

from segworker.models.maskrcnn.model import MaskRCNN
from segworker.models.maskrcnn.weights import NUM_PARAMETERS, OFFICIAL_FILES, build_resnet50
from segworker.models.registry import ModelEntry, register

__all__ = ["MaskRCNN", "build_resnet50"]

for _name, _summary in (
    ("maskrcnn_resnet50_fpn", "Mask R-CNN, ResNet-50 FPN, as torchvision's COCO_V1 weights want it"),
    (
        "maskrcnn_resnet50_fpn_v2",
        "Mask R-CNN, ResNet-50 FPN with torchvision's improved heads and recipe (COCO_V1 of v2)",
    ),
):
    register(
        ModelEntry(
            name=_name,
            build=partial(build_resnet50, name=_name),
            summary=_summary,
            tasks=("boxes", "instances"),
            num_parameters=NUM_PARAMETERS[_name],
            licence="code and official weights BSD-3-Clause (torchvision)",
            official=OFFICIAL_FILES[_name],
        )
    )
