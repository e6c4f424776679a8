"""BlendMask with a ResNet-50, and its real-time variant."""

from functools import partial

from segworker.models.blendmask.model import build_blendmask
from segworker.models.blendmask.weights import OFFICIAL, OFFICIAL_RT
from segworker.models.registry import ModelEntry, register

__all__ = ["build_blendmask"]

_LICENCE = "code here Apache-2.0; official weights for non-commercial use (AdelaiDet)"
_SMALL = {
    "backbone": "resnet18",
    "norm": "group",
    "basis_norm": "group",
    "channels": 64,
    "basis_channels": 32,
    "num_classes": 2,
    "detections": 10,
}
register(
    ModelEntry(
        name="blendmask_r50",
        build=build_blendmask,
        summary="BlendMask, ResNet-50 FPN, as AdelaiDet's 3x weights want it",
        tasks=("boxes", "instances"),
        num_parameters=35_981_562,
        licence=_LICENCE,
        official="R_50_3x.pth",
        published="box AP 42.7, mask AP 37.8 (COCO val, AdelaiDet's README)",
        layouts=(OFFICIAL,),
        narrow={**_SMALL, "convs": 2},
    )
)
register(
    ModelEntry(
        name="blendmask_rt_r50",
        build=partial(build_blendmask, "rt"),
        summary="BlendMask's real-time variant, ResNet-50 FPN",
        tasks=("boxes", "instances"),
        num_parameters=31_753_850,
        licence=_LICENCE,
        published="box AP 39.3, mask AP 35.1 (COCO val, AdelaiDet's README)",
        layouts=(OFFICIAL_RT,),
        narrow=_SMALL,
    )
)
