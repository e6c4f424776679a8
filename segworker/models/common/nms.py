"""Suppression of doubles beside torchvision's `batched_nms`: fast NMS and Matrix NMS.

N candidates, C classes, H and W cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


def fast_nms(
    boxes: Tensor, scores_CN: Tensor, *, iou: float, per_class: int, detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Drop what overlaps any better box of its class, also one that is dropped itself (Bolya et al., 2019, section 5).

    Args:
        boxes: (N, 4).
        scores_CN: of each class, without the background.
        iou: two boxes above it are doubles.
        per_class: best candidates of each class that are looked at.
        detections: at most, over all classes.

    Returns:
        (D,) index of the candidate, class and score, best first. No score is too low to be among them.
    """
    if not scores_CN.shape[1]:
        nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return nothing, nothing, scores_CN.new_zeros(0)
    best, index = (part[:, :per_class] for part in scores_CN.sort(dim=1, descending=True, stable=True))
    kept = torch.stack([box_iou(some, some).triu(1).amax(0) <= iou for some in boxes[index]])
    label, place = kept.nonzero(as_tuple=True)
    order = best[label, place].sort(descending=True, stable=True).indices[:detections]
    label, place = label[order], place[order]
    return index[label, place], label, best[label, place]


def matrix_nms(masks_NHW: Tensor, labels: Tensor, scores: Tensor, *, sigma: float) -> Tensor:
    """Return scores that fall by how much a better mask of the class overlaps (Wang et al., 2020, arXiv:2003.10152).

    Args:
        masks_NHW: bool, best first.
        labels: (N,).
        scores: (N,), falling.
        sigma: of the Gaussian kernel.
    """
    if not len(scores):
        return scores
    flat = masks_NHW.flatten(1).float()
    areas, common = flat.sum(1), flat @ flat.T
    ious = common / (areas[:, None] + areas[None] - common).clamp(min=1)
    overlaps = torch.where(labels[:, None] == labels[None], ious, torch.zeros_like(ious)).triu(1)
    covered = overlaps.amax(0)  # how far each mask is itself a double of a better one
    decay = torch.exp(-sigma * overlaps.square()) / torch.exp(-sigma * covered.square())[:, None]
    return scores * decay.amin(0)
