"""FCOS (Tian et al., 2019, arXiv:1904.01355): every cell of a pyramid has a class, a box and a centerness.

B images, N cells of all levels, D detections, C classes, K channels, h and w cells of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

from segworker.models.common.dense_model import Target
from segworker.models.common.init import set_bias

CENTRE_RADIUS = 1.5
"In cells: only so far from an object's centre does a cell stand for it."


@dataclass(frozen=True, slots=True)
class FCOSConfig:
    """Numbers of the head and of choosing detections."""

    num_classes: int = 80
    channels: int = 256
    shared_convs: int = 0
    "Convolutions before classes and boxes part."
    convs: int = 4
    "Convolutions of each of the two."
    strides_px: tuple[int, ...] = (8, 16, 32, 64, 128)
    limits_px: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    "Objects whose farthest side is nearer than the k-th limit are not taught to the levels behind the k-th."
    scales: bool = False
    "A learned factor for the boxes of each level."
    weigh_first: bool = True
    "The score threshold is for class times centerness; False: for the class alone."
    score_threshold: float = 0.05
    per_level: int = 1000
    nms_iou: float = 0.6
    detections: int = 100


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, values: Tensor) -> Tensor:
        """Return the product."""
        return values * self.scale


class FCOSHead(nn.Module):
    """Towers over each level, with weights that all levels share."""

    def __init__(self, config: FCOSConfig) -> None:
        super().__init__()
        width = config.channels
        self.share_tower, self.cls_tower, self.bbox_tower = (
            tower(width, depth) for depth in (config.shared_convs, config.convs, config.convs)
        )
        self.cls_logits = nn.Conv2d(width, config.num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(width, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in config.strides_px) if config.scales else None
        for conv in (self.cls_logits, self.bbox_pred, self.ctrness):
            nn.init.normal_(conv.weight, std=0.01)
            set_bias(conv)
        set_bias(self.cls_logits, -4.595)  # a probability of 0.01

    def forward(self, levels: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return classes_k (B, C, h, w) and centerness_k (B, 1, h, w) logits, boxes_k (B, 4, h, w), and box features.

        Boxes are distances from a cell's middle to the left, top, right and bottom side, in strides.
        """
        found, features = {}, []
        for k, level in enumerate(levels):
            shared = self.share_tower(level)
            boxes = self.bbox_tower(shared)
            sides = self.bbox_pred(boxes)
            found[f"classes_{k}"] = self.cls_logits(self.cls_tower(shared))
            found[f"boxes_{k}"] = F.relu(self.scales[k](sides) if self.scales is not None else sides)
            found[f"centerness_{k}"] = self.ctrness(boxes)
            features.append(boxes)
        return found, features


def tower(channels: int, depth: int) -> nn.Sequential:
    """Return 3x3 convolutions with group norm and ReLU, one after the other."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(conv.weight, std=0.01)
        set_bias(conv)
        layers += [conv, nn.GroupNorm(32, channels), nn.ReLU()]
    return nn.Sequential(*layers)


def flat(raw: Mapping[str, Tensor], name: str, num_levels: int) -> Tensor:
    """Return (B, N, channels) of all levels, one after the other."""
    return torch.cat([raw[f"{name}_{k}"].flatten(2).transpose(1, 2) for k in range(num_levels)], dim=1)


def places(raw: Mapping[str, Tensor], config: FCOSConfig) -> tuple[Tensor, Tensor]:
    """Return (N, 2) x and y of all cells' middles in pixels, and (N,) their levels."""
    points, levels = [], []
    for k, stride in enumerate(config.strides_px):
        h, w = raw[f"classes_{k}"].shape[-2:]
        device = raw[f"classes_{k}"].device
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        points.append(torch.stack([x, y], dim=2).reshape(-1, 2) * stride + stride // 2)
        levels.append(torch.full((h * w,), k, device=device))
    return torch.cat(points).float(), torch.cat(levels)


def boxes_of(raw: Mapping[str, Tensor], k: int, config: FCOSConfig) -> Tensor:
    """Return (N, 4) xyxy boxes of an image in pixels; they may reach beyond it."""
    points, levels = places(raw, config)
    strides = torch.tensor(config.strides_px, device=points.device)[levels][:, None]
    sides = flat(raw, "boxes", len(config.strides_px))[k] * strides
    return torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1)


def detect(raw: Mapping[str, Tensor], k: int, config: FCOSConfig) -> dict[str, Tensor]:
    """Return one image's detections, best first.

    Args:
        raw: what the head returns, in float32.
        k: which image of the batch.
        config: thresholds.

    Returns:
        boxes (D, 4) that may reach beyond the image, labels (D,) from 0, scores (D,) the root of class times
        centerness, cells (D,) index of the cell among all levels'.
    """
    num_levels = len(config.strides_px)
    classes = flat(raw, "classes", num_levels)[k].sigmoid()
    weighed = classes * flat(raw, "centerness", num_levels)[k].sigmoid()
    candidates = (weighed if config.weigh_first else classes) > config.score_threshold
    levels = places(raw, config)[1]
    cells, labels = [], []
    for level in range(num_levels):
        cell, label = (candidates & (levels == level)[:, None]).nonzero(as_tuple=True)
        best = weighed[cell, label].sort(descending=True, stable=True).indices[: config.per_level]
        cells.append(cell[best])
        labels.append(label[best])
    cell, label = torch.cat(cells), torch.cat(labels)
    boxes, scores = boxes_of(raw, k, config)[cell], weighed[cell, label].sqrt()
    keep = batched_nms(boxes, scores, label, config.nms_iou)[: config.detections]
    return {"boxes": boxes[keep], "labels": label[keep], "scores": scores[keep], "cells": cell[keep]}


def seen_boxes(boxes: Tensor, size_yx: tuple[int, int]) -> Tensor:
    """Return indices of the boxes of which a part lies in an image of (height, width)."""
    inside: Tensor = clip_boxes_to_image(boxes, size_yx)
    return ((inside[:, 2:] - inside[:, :2]) > 0).all(1).nonzero()[:, 0]


def assign(raw: Mapping[str, Tensor], target: Target, config: FCOSConfig) -> Tensor:
    """Return (N,) the object each cell stands for: the smallest of those around it whose size is its level's; or -1."""
    points, levels = places(raw, config)
    boxes = target["boxes"].to(points)
    if not len(boxes):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    sides = sides_to(points[:, None], boxes[None])
    limits = points.new_tensor([-1.0, *config.limits_px, float("inf")])
    farthest = sides.amax(2)
    fits = (farthest >= limits[levels][:, None]) & (farthest <= limits[levels + 1][:, None])
    reach = CENTRE_RADIUS * points.new_tensor(config.strides_px)[levels]
    near = ((points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs() < reach[:, None, None]).all(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)[None].expand(len(points), -1)
    areas = areas.masked_fill(~(fits & near & (sides.amin(2) > 0)), float("inf"))
    smallest, index = areas.min(1)
    return torch.where(smallest.isfinite(), index, -torch.ones_like(index))


def sides_to(points: Tensor, boxes: Tensor) -> Tensor:
    """Return (..., 4) distances from points (..., 2) to the left, top, right and bottom side of boxes (..., 4)."""
    low, high = points - boxes[..., :2], boxes[..., 2:] - points
    return torch.cat([low, high], dim=-1)


def centerness(sides: Tensor) -> Tensor:
    """Return (N,) 1 in the middle of a box, 0 at its sides (equation 3)."""
    x, y = sides[:, [0, 2]], sides[:, [1, 3]]
    ratios = x.amin(1) / x.amax(1).clamp(min=1e-6) * (y.amin(1) / y.amax(1).clamp(min=1e-6))
    result: Tensor = ratios.clamp(min=0).sqrt()
    return result


def fcos_losses(
    raw: Mapping[str, Tensor], targets: Sequence[Target], owners: Sequence[Tensor], config: FCOSConfig
) -> dict[str, Tensor]:
    """Return the three losses of a batch: focal, generalised IoU weighted by centerness, and centerness.

    Args:
        raw: what the head returns, in float32.
        targets: of each image `boxes` and `labels` from 0.
        owners: of each image, see `assign`.
        config: levels and classes.
    """
    num_levels = len(config.strides_px)
    logits, middle = flat(raw, "classes", num_levels), flat(raw, "centerness", num_levels)[..., 0]
    points, _ = places(raw, config)
    hot = torch.zeros_like(logits)
    found, boxes, wanted, on = [], [], [], []
    for k, (target, owner) in enumerate(zip(targets, owners, strict=True)):
        cells = (owner >= 0).nonzero()[:, 0]
        hot[k, cells, target["labels"][owner[cells]]] = 1
        found.append(boxes_of(raw, k, config)[cells])
        boxes.append(target["boxes"].to(points)[owner[cells]])
        wanted.append(centerness(sides_to(points[cells], boxes[-1])))
        on.append(middle[k, cells])
    weights = torch.cat(wanted)
    count = max(1, len(weights))
    ious = generalized_box_iou_loss(torch.cat(found), torch.cat(boxes), reduction="none")
    unused = sum(raw[f"{name}_{k}"].sum() for name in ("boxes", "centerness") for k in range(num_levels)) * 0
    return {
        "loss_class": sigmoid_focal_loss(logits, hot, alpha=0.25, gamma=2, reduction="sum") / count,
        "loss_box": (ious * weights).sum() / weights.sum().clamp(min=1e-6) + unused,
        "loss_centerness": F.binary_cross_entropy_with_logits(torch.cat(on), weights, reduction="sum") / count,
    }
