"""torchvision's own Mask R-CNNs, built so that their official checkpoint files load name by name.

The v1 file was trained with frozen batch norms of eps 0.0 and means something else with any other eps; the v2 file with
ordinary batch norms of eps 1e-5. Labels are the 91 raw COCO ids (background first, ten of them unused).
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from segworker.errors import ConfigError
from segworker.models.maskrcnn.config import ResNet50Options, parse_options
from segworker.models.maskrcnn.model import MaskRCNN
from segworker.types import Category, InputSpec

OFFICIAL_FILES = {
    "maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "maskrcnn_resnet50_fpn_v2": "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
}
NUM_PARAMETERS = {"maskrcnn_resnet50_fpn": 44_401_393, "maskrcnn_resnet50_fpn_v2": 46_359_409}
SPEC = InputSpec(num_bands=3, scaling="unit", stride=32, cut_trust_px=16, tile_px=1024, overlap_px=256)
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NUM_COCO_LABELS = 91


def build_resnet50(*, name: str, **options: object) -> MaskRCNN:
    """Return one of torchvision's two networks with random weights.

    Args:
        name: a key of `OFFICIAL_FILES`.
        options: fields of `ResNet50Options`.
    """
    chosen = parse_options(ResNet50Options, options)
    heads = {"box_detections_per_img": chosen.detections, "box_score_thresh": chosen.score_threshold}
    if name == "maskrcnn_resnet50_fpn_v2":
        network = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=chosen.num_classes, **heads)
    else:
        norm = partial(FrozenBatchNorm2d, eps=0.0) if chosen.frozen_norm else nn.BatchNorm2d
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5)
        network = TorchvisionMaskRCNN(backbone, chosen.num_classes, **heads)
    return MaskRCNN(
        network.backbone,
        network.rpn,
        network.roi_heads,
        categories=categories_of(chosen),
        spec=SPEC,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
    )


def categories_of(options: ResNet50Options) -> tuple[Category, ...]:
    """Return the foreground classes: the names given, COCO's for 91 labels, else 'class 1', 'class 2' and so on."""
    count = options.num_classes
    if options.class_names:
        if len(options.class_names) != count - 1:
            raise ConfigError(
                f"class_names has a name for each class but the background, got {len(options.class_names)} names for "
                f"num_classes={count}"
            )
        names = ["", *options.class_names]
    elif count == _NUM_COCO_LABELS:
        names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    else:
        names = [f"class {label}" for label in range(count)]
    return tuple(Category(label, names[label]) for label in range(1, count) if names[label] != "N/A")
