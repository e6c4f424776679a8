"""torchvision's own detectors, built so that their official checkpoint files load name by name.

The v1 files were trained with frozen batch norms of eps 0.0 and mean something else with any other eps; the v2 files
with ordinary batch norms of eps 1e-5. Labels are the 91 raw COCO ids (background first, ten of them unused).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from segworker.errors import ConfigError
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.input import IMAGENET_UNIT
from segworker.models.common.options import parse_options
from segworker.models.common.two_stage import TwoStage
from segworker.types import Category, InputSpec

SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
BOX_SPEC = replace(SPEC, objects="boxes", exclusive=False)
"Boxes of neighbours overlap where their objects do not."
NUM_COCO_LABELS = 91
LICENCE = "code and official weights BSD-3-Clause (torchvision)"
NARROW_V1: Mapping[str, object] = {
    "backbone": "resnet18",
    "frozen_norm": False,
    "num_classes": 3,
    "proposals": 100,
    "detections": 10,
    "samples": 64,
}
NARROW_V2: Mapping[str, object] = {"num_classes": 3, "proposals": 50, "detections": 5, "samples": 32}
"Small variants."


@dataclass(frozen=True, slots=True)
class TorchvisionOptions:
    """Options of torchvision's networks; the defaults are those of the official checkpoints."""

    num_classes: int = NUM_COCO_LABELS
    "Classes including the background."
    class_names: tuple[str, ...] = ()
    "Names of the classes from label 1 on; in options, a comma-separated text will do."
    detections: int = 100
    "Objects of a tile, at most; raise it for dense tiles."
    score_threshold: float = 0.05
    proposals: int = 1000
    "Of an image, that the second stage looks at; twice as many in training."
    samples: int = 512
    "Proposals of an image that the losses look at."
    backbone: str = "resnet50"
    "v1 only: a smaller or larger ResNet, for training."
    frozen_norm: bool = True
    "v1 only: batch norms as the official checkpoint wants them; False to train from random weights."

    def __post_init__(self) -> None:
        if (
            self.num_classes < 2
            or min(self.detections, self.proposals, self.samples) < 1
            or not 0 <= self.score_threshold <= 1
        ):
            raise ConfigError(
                "num_classes is at least 2, detections, proposals and samples at least 1 and score_threshold in 0..1, "
                f"got {self}; "
                "check the model options"
            )

    @property
    def settings(self) -> dict[str, float]:
        """What torchvision's builders take."""
        return {
            "box_detections_per_img": self.detections,
            "box_score_thresh": self.score_threshold,
            "box_batch_size_per_image": self.samples,
            "rpn_pre_nms_top_n_test": self.proposals,
            "rpn_post_nms_top_n_test": self.proposals,
            "rpn_pre_nms_top_n_train": 2 * self.proposals,
            "rpn_post_nms_top_n_train": 2 * self.proposals,
        }


def v1_backbone(options: TorchvisionOptions) -> nn.Module:
    """Return the ResNet with a pyramid of the v1 networks."""
    norm = partial(FrozenBatchNorm2d, eps=0.0) if options.frozen_norm else nn.BatchNorm2d
    backbone: nn.Module = resnet_fpn_backbone(
        backbone_name=options.backbone, weights=None, norm_layer=norm, trainable_layers=5
    )
    return backbone


def wrap(network: nn.Module, categories: Sequence[Category]) -> TwoStage:
    """Return torchvision's network behind the model contract."""
    has_masks = getattr(network.get_submodule("roi_heads"), "mask_predictor", None) is not None
    return TwoStage(
        network.get_submodule("backbone"),
        network.get_submodule("rpn"),
        network.get_submodule("roi_heads"),
        categories=categories,
        spec=SPEC if has_masks else BOX_SPEC,
        rule=IMAGENET_UNIT,
    )


def categories_of(options: TorchvisionOptions) -> tuple[Category, ...]:
    """Return the foreground classes: the names given, COCO's for 91 labels, else 'class 1', 'class 2' and so on."""
    if options.num_classes == NUM_COCO_LABELS and not options.class_names:
        return COCO_THINGS
    return name_classes(options.num_classes - 1, options.class_names, default=())


def build_v1(detector: Callable[..., nn.Module], **options: object) -> TwoStage:
    """Return torchvision's first network of a kind with random weights.

    Args:
        detector: `FasterRCNN` or `MaskRCNN`.
        options: fields of `TorchvisionOptions`.
    """
    chosen = parse_options(TorchvisionOptions, options)
    return wrap(detector(v1_backbone(chosen), chosen.num_classes, **chosen.settings), categories_of(chosen))


def build_v2(builder: Callable[..., nn.Module], **options: object) -> TwoStage:
    """Return torchvision's improved network of a kind with random weights.

    Args:
        builder: `fasterrcnn_resnet50_fpn_v2` or `maskrcnn_resnet50_fpn_v2`.
        options: fields of `TorchvisionOptions`.
    """
    chosen = parse_options(TorchvisionOptions, options)
    network = builder(weights=None, weights_backbone=None, num_classes=chosen.num_classes, **chosen.settings)
    return wrap(network, categories_of(chosen))
