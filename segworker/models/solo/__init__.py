"""SOLO, Decoupled SOLO and SOLOv2 with a ResNet-50 pyramid."""

from functools import partial

from segworker.models.registry import ModelEntry, register
from segworker.models.solo.model import build_solo
from segworker.models.solo.weights import OFFICIAL

__all__ = ["build_solo"]

_SMALL = {
    "backbone": "resnet18",
    "norm": "group",
    "fpn_channels": 64,
    "head_channels": 64,
    "head_convs": 2,
    "kernel_channels": 32,
    "num_classes": 2,
    "grids": (12, 10, 8, 6, 4),
}
for _name, _variant, _title, _num_parameters, _file, _published in (
    ("solo_r50", "solo", "SOLO", 36_301_232, "SOLO_R50_3x.pth", "35.8"),
    ("decoupled_solo_r50", "decoupled", "Decoupled SOLO", 40_028_560, "DECOUPLED_SOLO_R50_3x.pth", "36.4"),
    ("solov2_r50", "solov2", "SOLOv2", 46_592_912, "SOLOv2_R50_3x.pth", "37.5"),
):
    register(
        ModelEntry(
            name=_name,
            build=partial(build_solo, _variant),
            summary=f"{_title}, ResNet-50 FPN, as its authors' 3x weights want it",
            tasks=("boxes", "instances"),
            num_parameters=_num_parameters,
            licence="code here Apache-2.0; official weights for non-commercial use (WXinlong/SOLO)",
            official=_file,
            published=f"mask AP {_published} (COCO test-dev, SOLO's README)",
            layouts=(OFFICIAL,),
            narrow=_SMALL,
        )
    )
