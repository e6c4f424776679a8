"""CenterMask2 (Lee and Park, 2020, arXiv:1911.06667): FCOS on VoVNet, masks with spatial attention, scores of masks.

B tiles, D objects, C classes, M lattice, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from segworker.models.centermask.config import LITE, RULE, SPEC, CenterMaskConfig
from segworker.models.centermask.heads import AttentiveMaskHead, MaskIoUHead, pool_by_share
from segworker.models.centermask.loss import mask_losses
from segworker.models.common import fcos
from segworker.models.common.backbone import LevelsP6P7
from segworker.models.common.coco import COCO_THINGS, name_classes
from segworker.models.common.dense_model import DenseModel, Target
from segworker.models.common.options import change_options
from segworker.models.common.two_stage import to_prediction, valid_size_yx
from segworker.models.common.vovnet import build_vovnet
from segworker.types import Prediction

_FIRST_PX = 8
"Stride of the finest level."


class CenterMask(DenseModel):
    """The network."""

    def __init__(self, config: CenterMaskConfig) -> None:
        named = name_classes(config.num_classes, config.class_names, default=COCO_THINGS)
        super().__init__(categories=named, spec=SPEC, rule=RULE)
        self.config = config
        width = config.channels
        body, channels = build_vovnet(config.backbone, norm=config.norm)
        layers = {f"stage{stage}": str(level) for level, stage in enumerate((3, 4, 5))}
        self.backbone = BackboneWithFPN(body, layers, list(channels[1:]), width, LevelsP6P7(width))
        self.fcos = fcos.FCOSHead(config.fcos)
        self.mask_head = AttentiveMaskHead(width, config.num_classes, config.convs)
        self.iou_head = MaskIoUHead(width, config.num_classes, config.units, config.convs)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return what `FCOSHead` returns, and features_k (B, K, h, w) of strides 8, 16 and 32, on normalised images."""
        levels = list(self.backbone(images_BCHW).values())
        found: dict[str, Tensor] = self.fcos(levels)[0]
        return found | {f"features_{k}": level for k, level in enumerate(levels[:3])}

    def losses(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return FCOS's losses and those of masks and their scores, each of weight 1."""
        config = self.config
        owners = [fcos.assign(raw, target, config.fcos) for target in targets]
        area = _area_px(raw)
        with torch.no_grad():
            boxes = [fcos.detect(raw, k, config.fcos)["boxes"] for k in range(len(targets))]
        return {
            **fcos.fcos_losses(raw, targets, owners, config.fcos),
            **mask_losses(_levels(raw), boxes, area, targets, self.mask_head, self.iou_head),
        }

    def detect(self, raw: Mapping[str, Tensor], k: int, size_yx: tuple[int, int]) -> dict[str, Tensor]:
        """Return one image's detections.

        Args:
            raw: what `forward` returns, in float32.
            k: which image of the batch.
            size_yx: boxes may reach beyond it, but not lie beyond it.

        Returns:
            boxes (D, 4), labels (D,) from 0, scores (D,) of FCOS, mask_scores (D,) times the mask's expected overlap,
            masks (D, 1, M, M) probabilities.
        """
        found = fcos.detect(raw, k, self.config.fcos)
        keep = fcos.seen_boxes(found["boxes"], size_yx)
        found = {name: values[keep] for name, values in found.items()}
        levels = [level[k : k + 1] for level in _levels(raw)]
        pooled = pool_by_share(levels, [found["boxes"]], [_area_px(raw)], 14)
        rows = torch.arange(len(keep), device=keep.device)
        masks = self.mask_head(pooled)[rows, found["labels"]].sigmoid()[:, None]
        overlaps = self.iou_head(pooled, masks)[rows, found["labels"]]
        return {**found, "masks": masks, "mask_scores": found["scores"] * overlaps}

    def prediction(self, raw: Mapping[str, Tensor], k: int, valid_HW: Tensor) -> Prediction:
        """Return what is seen in the k-th tile of a batch."""
        found = self.detect(raw, k, valid_size_yx(valid_HW))
        if self.config.mask_scores:
            found["scores"] = found["mask_scores"].clamp(0, 1)
        return to_prediction(found, valid_HW, {label: c.id for label, c in enumerate(self.categories)})


def _levels(raw: Mapping[str, Tensor]) -> list[Tensor]:
    return [raw[f"features_{k}"] for k in range(3)]


def _area_px(raw: Mapping[str, Tensor]) -> float:
    h, w = raw["features_0"].shape[-2:]
    return float(h * w * _FIRST_PX**2)


def build_centermask(variant: str = "full", **options: object) -> CenterMask:
    """Return a network with random weights.

    Args:
        variant: 'full' or 'lite'.
        options: fields of `CenterMaskConfig`.
    """
    return CenterMask(change_options(LITE if variant == "lite" else CenterMaskConfig(), options))
