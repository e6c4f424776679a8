"""The training losses of YOLACT (Bolya et al., 2019, section 3, with the weights of its code).

B images, N priors, P positive priors, C classes, K prototypes, h and w cells of the prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from segworker.models.common.dense_model import Target
from segworker.models.yolact.config import (
    BOX_WEIGHT,
    CLASS_WEIGHT,
    MASK_WEIGHT,
    MASKS_PER_IMAGE,
    NEGATIVE_IOU,
    NEGATIVES_PER_POSITIVE,
    POSITIVE_IOU,
    SEMANTIC_WEIGHT,
)
from segworker.models.yolact.decode import CODER, assemble


def yolact_losses(raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return the four losses of a batch.

    Args:
        raw: what `Yolact.forward` returns.
        targets: of each image `boxes`, `labels` from 0, `masks` (n, H, W).
    """
    matches = [_match(raw["priors_xyxy"], target) for target in targets]
    num_positive = max(1, sum(int((match >= 0).sum()) for match in matches))
    parts = [
        _image_losses(raw, k, match, target) for k, (match, target) in enumerate(zip(matches, targets, strict=True))
    ]
    total = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
    return {
        "loss_class": CLASS_WEIGHT * total["class"] / num_positive,
        "loss_box": BOX_WEIGHT * total["box"] / num_positive,
        "loss_mask": MASK_WEIGHT * total["mask"] / num_positive + 0 * raw["prototypes"].sum(),
        "loss_semantic": SEMANTIC_WEIGHT * total["semantic"] / len(targets),
    }


def _match(priors_xyxy: Tensor, target: Target) -> Tensor:
    """Return (N,) index of each prior's object; -1 background, -2 neither."""
    if not len(target["boxes"]):
        return torch.full((len(priors_xyxy),), -1, dtype=torch.int64, device=priors_xyxy.device)
    matcher = Matcher(POSITIVE_IOU, NEGATIVE_IOU, allow_low_quality_matches=True)
    found: Tensor = matcher(box_iou(target["boxes"].to(priors_xyxy), priors_xyxy))
    return found


def _image_losses(raw: Mapping[str, Tensor], k: int, match: Tensor, target: Target) -> dict[str, Tensor]:
    positive = (match >= 0).nonzero()[:, 0]
    objects = match[positive]
    offsets = raw["offsets"][k, positive]
    boxes = target["boxes"].to(offsets)[objects]
    wanted = CODER.encode_single(boxes, raw["priors_xyxy"][positive]) if len(positive) else offsets
    return {
        "class": _class_loss(raw["logits"][k], match, target["labels"]),
        "box": F.smooth_l1_loss(offsets, wanted, reduction="sum"),
        "mask": _mask_loss(raw["prototypes"][k], raw["coefficients"][k, positive], objects, target),
        "semantic": _semantic_loss(raw["semantic"][k], target),
    }


def _class_loss(logits: Tensor, match: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over the positive priors and the hardest negative ones, three for each."""
    positive, negative = match >= 0, match == Matcher.BELOW_LOW_THRESHOLD
    wanted = torch.zeros_like(match)
    wanted[positive] = labels[match[positive]] + 1
    hardness = (logits.logsumexp(1) - logits[:, 0]).detach().masked_fill(~negative, -1)
    count = min(max(1, int(positive.sum())) * NEGATIVES_PER_POSITIVE, int(negative.sum()))
    chosen = positive.clone()
    chosen[hardness.topk(count).indices] = True
    return F.cross_entropy(logits[chosen], wanted[chosen], reduction="sum")


def _mask_loss(prototypes_Khw: Tensor, coefficients: Tensor, objects: Tensor, target: Target) -> Tensor:
    """Return the sum over positive priors of the cross-entropy inside the object's box, over the box's area."""
    num_positive = len(objects)
    if not num_positive:
        return coefficients.sum() * 0
    if num_positive > MASKS_PER_IMAGE:
        some = torch.randperm(num_positive, device=objects.device)[:MASKS_PER_IMAGE]
        coefficients, objects = coefficients[some], objects[some]
    height, width = target["masks"].shape[-2:]
    boxes = target["boxes"].to(coefficients)[objects]
    probs = assemble(prototypes_Khw, coefficients, boxes, (height, width)).clamp(0, 1)
    wanted = _shrunk(target["masks"], probs.shape[-2:])[objects]
    inside = probs > 0
    each = F.binary_cross_entropy(probs, wanted, reduction="none") * inside
    area = ((boxes[:, 2:] - boxes[:, :2]).prod(1) / (height * width)).clamp(min=1e-6)
    cells = probs.shape[-2] * probs.shape[-1]
    return (each.sum((1, 2)) / area / cells).sum() * (num_positive / len(objects))


def _semantic_loss(logits_Chw: Tensor, target: Target) -> Tensor:
    """Return the mean over cells of the cross-entropies of all classes: is there anything of the class?"""
    wanted = torch.zeros_like(logits_Chw)
    if len(target["labels"]):
        for label, mask in zip(target["labels"].tolist(), _shrunk(target["masks"], logits_Chw.shape[-2:]), strict=True):
            wanted[label] = torch.maximum(wanted[label], mask)
    total = F.binary_cross_entropy_with_logits(logits_Chw, wanted, reduction="sum")
    return total / logits_Chw[0].numel()


def _shrunk(masks_NHW: Tensor, size_yx: Sequence[int]) -> Tensor:
    small = F.interpolate(masks_NHW[None].float(), tuple(size_yx), mode="bilinear", align_corners=False)[0]
    return (small > 0.5).float()
