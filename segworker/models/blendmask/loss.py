"""The training losses of BlendMask: those of FCOS, masks over positive cells, and classes of pixels.

B images, C classes, h and w cells at stride 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segworker.models.blendmask.config import MASK, MASK_WEIGHT, MASKS_PER_BATCH, SEMANTIC_WEIGHT, BlendMaskConfig
from segworker.models.blendmask.decode import blend
from segworker.models.common import fcos
from segworker.models.common.dense_model import Target
from segworker.models.common.roi import mask_targets


def blendmask_losses(
    raw: Mapping[str, Tensor], targets: Sequence[Target], config: BlendMaskConfig
) -> dict[str, Tensor]:
    """Return the five losses of a batch.

    Args:
        raw: what `BlendMask.forward` returns.
        targets: of each image `boxes`, `labels` from 0, `masks` (n, H, W).
        config: sizes.
    """
    owners = [fcos.assign(raw, target, config.fcos) for target in targets]
    return {
        **fcos.fcos_losses(raw, targets, owners, config.fcos),
        "loss_mask": MASK_WEIGHT * _mask_loss(raw, targets, owners, config),
        "loss_semantic": SEMANTIC_WEIGHT * _semantic_loss(raw["semantic"], targets),
    }


def _mask_loss(
    raw: Mapping[str, Tensor], targets: Sequence[Target], owners: Sequence[Tensor], config: BlendMaskConfig
) -> Tensor:
    """Return the mean cross-entropy of the masks in the objects' boxes, weighted by the cells' centerness."""
    attention = fcos.flat(raw, "attention", config.levels)
    points, _ = fcos.places(raw, config.fcos)
    total, weights = raw["bases"].sum() * 0 + attention.sum() * 0, []
    for k, (target, owner) in enumerate(zip(targets, owners, strict=True)):
        cells = (owner >= 0).nonzero()[:, 0]
        if len(cells) > MASKS_PER_BATCH // len(targets):
            cells = cells[torch.randperm(len(cells), device=cells.device)[: MASKS_PER_BATCH // len(targets)]]
        if not len(cells):
            continue
        boxes = target["boxes"].to(points)[owner[cells]]
        weight = fcos.centerness(fcos.sides_to(points[cells], boxes))
        wanted = mask_targets(target, boxes, owner[cells], MASK)
        logits = blend(raw["bases"][k], attention[k, cells], boxes)
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((1, 2))
        total = total + (each * weight).sum()
        weights.append(weight)
    return total / torch.cat(weights).sum().clamp(min=1e-6) if weights else total


def _semantic_loss(logits_BChw: Tensor, targets: Sequence[Target]) -> Tensor:
    """Return the mean cross-entropy of the classes of pixels, the background first; smaller objects lie on top."""
    wanted = torch.zeros((len(targets), *logits_BChw.shape[-2:]), dtype=torch.int64, device=logits_BChw.device)
    for k, target in enumerate(targets):
        if len(target["masks"]):
            masks = F.interpolate(target["masks"][:, None].float(), logits_BChw.shape[-2:], mode="nearest")[:, 0] > 0
            for n in target["masks"].sum((1, 2)).argsort(descending=True).tolist():
                wanted[k][masks[n]] = target["labels"][n] + 1
    return F.cross_entropy(logits_BChw, wanted)
