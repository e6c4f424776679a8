"""CenterMask2 with VoVNetV2-39, and its Lite variant."""

from functools import partial

from segworker.models.centermask.model import build_centermask
from segworker.models.centermask.weights import OFFICIAL
from segworker.models.registry import ModelEntry, register

__all__ = ["build_centermask"]

for _name, _variant, _title, _num_parameters, _file, _published in (
    ("centermask2_v39", "full", "CenterMask2", 52_608_972, "centermask2-V-39-eSE-FPN-ms-3x.pth", "44.2, mask AP 39.7"),
    (
        "centermask2_lite_v39",
        "lite",
        "CenterMask2-Lite",
        35_108_940,
        "centermask2-lite-V-39-eSE-FPN-ms-4x.pth",
        "40.9, mask AP 36.7",
    ),
):
    register(
        ModelEntry(
            name=_name,
            build=partial(build_centermask, _variant),
            summary=f"{_title}, VoVNetV2-39 FPN, as its authors' weights want it",
            tasks=("boxes", "instances"),
            num_parameters=_num_parameters,
            licence="code here Apache-2.0; official weights CC BY-NC 4.0 (youngwanLEE/centermask2)",
            official=_file if _variant == "full" else None,
            published=f"box AP {_published} (COCO val, CenterMask2's README)",
            layouts=(OFFICIAL,),
            narrow={
                "backbone": "vovnet_tiny",
                "norm": "group",
                "channels": 64,
                "convs": 2,
                "units": 64,
                "num_classes": 2,
                "detections": 10,
            },
        )
    )
