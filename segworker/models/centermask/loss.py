"""The training losses of CenterMask's second stage: masks, and how well the network knows their overlap.

D boxes, C classes, M lattice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segworker.models.centermask.config import MASK_IOU, SAMPLES
from segworker.models.centermask.heads import AttentiveMaskHead, MaskIoUHead, pool_by_share
from segworker.models.common.dense_model import Target
from segworker.models.common.roi import mask_targets, match_boxes


def mask_losses(
    levels: Sequence[Tensor],
    boxes: Sequence[Tensor],
    area_px: float,
    targets: Sequence[Target],
    mask_head: AttentiveMaskHead,
    iou_head: MaskIoUHead,
) -> dict[str, Tensor]:
    """Return the mean cross-entropy of the masks, and the mean squared error of their expected overlap.

    Args:
        levels: strides 8, 16 and 32.
        boxes: (D, 4) detections of each image; the objects' own boxes are added to those that lie on objects.
        area_px: of an image.
        targets: of each image `boxes`, `labels` from 0, `masks` (n, H, W).
        mask_head: features and masks.
        iou_head: expected overlaps.
    """
    chosen, wanted, labels = [], [], []
    for some, target in zip(boxes, targets, strict=True):
        together = torch.cat([target["boxes"].to(some), some])
        index, label = match_boxes(together, target, MASK_IOU, background=-1)
        keep = (label >= 0).nonzero()[:SAMPLES, 0]
        chosen.append(together[keep])
        labels.append(label[keep])
        wanted.append(_masks(target, together[keep], index[keep]))
    pooled = pool_by_share(levels, chosen, [area_px] * len(chosen), 14)
    rows = torch.arange(len(pooled), device=pooled.device)
    logits = mask_head(pooled)[rows, torch.cat(labels)]
    found = iou_head(pooled, logits.sigmoid().detach()[:, None])[rows, torch.cat(labels)]
    masks = torch.cat(wanted)
    if not len(masks):
        unused = [*mask_head.parameters(), *iou_head.parameters()]
        nothing = torch.stack([value.sum() for value in unused]).sum() * 0 + sum(level.sum() for level in levels) * 0
        return {"loss_mask": nothing, "loss_mask_iou": nothing}
    with torch.no_grad():
        overlaps = _overlaps(logits > 0, masks > 0)
    return {
        "loss_mask": F.binary_cross_entropy_with_logits(logits, masks),
        "loss_mask_iou": F.mse_loss(found, overlaps),
    }


def _masks(target: Target, boxes: Tensor, index: Tensor) -> Tensor:
    if not len(boxes):
        return boxes.new_zeros((0, 28, 28))
    return mask_targets(target, boxes, index, 28)


def _overlaps(found: Tensor, wanted: Tensor) -> Tensor:
    """Return (D,) intersection over union of masks in their boxes."""
    common, either = (found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))
    return common / either.clamp(min=1)
