"""YOLACT with ResNet-50 and ResNet-101."""

from functools import partial

from segworker.models.registry import ModelEntry, register
from segworker.models.yolact.model import build_yolact
from segworker.models.yolact.weights import OFFICIAL

__all__ = ["build_yolact"]

for _depth, _num_parameters, _file, _published in (
    (50, 31_164_943, "yolact_resnet50_54_800000.pth", "mask AP 28.2 (COCO test-dev, YOLACT's README)"),
    (101, 50_157_071, "yolact_base_54_800000.pth", "mask AP 29.8 (COCO test-dev, YOLACT's README)"),
):
    register(
        ModelEntry(
            name=f"yolact_r{_depth}",
            build=partial(build_yolact, backbone=f"resnet{_depth}"),
            summary=f"YOLACT, ResNet-{_depth} FPN, 550 px, as its authors' weights want it",
            tasks=("boxes", "instances"),
            num_parameters=_num_parameters,
            licence="code and official weights MIT (dbolya/yolact)",
            official=_file,
            published=_published,
            layouts=(OFFICIAL,),
            narrow={
                "backbone": "resnet18",
                "norm": "group",
                "channels": 64,
                "prototypes": 16,
                "num_classes": 2,
                "prior_px": 16,
            },
        )
    )
