"""Parts of second stages: pooling from a pyramid, box and mask heads, choosing detections, and training samples.

N boxes, C classes, K channels, M lattice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, roi_align

from segworker.models.common.init import set_bias

Target = Mapping[str, Tensor]


def pool_levels(levels: Sequence[Tensor], boxes: Sequence[Tensor], size: int, *, canonical_px: float = 224.0) -> Tensor:
    """Pool each box from the level that fits its size, with exact bilinear sampling (RoIAlign, aligned, adaptive).

    Args:
        levels: strides 4, 8, 16 and so on, one after the other.
        boxes: of each image, (N, 4) xyxy in pixels.
        size: cells of the result's sides.
        canonical_px: boxes of this side come from stride 16 (Lin et al., 2017, equation 1).

    Returns:
        (sum of N, K, size, size).
    """
    index = torch.cat([torch.full_like(some[:, :1], k) for k, some in enumerate(boxes)])
    together = torch.cat(list(boxes))
    rois = torch.cat([index, together], dim=1)
    sides = ((together[:, 2] - together[:, 0]) * (together[:, 3] - together[:, 1])).clamp(min=0).sqrt()
    level = torch.floor(4 + torch.log2(sides / canonical_px + 1e-8)).clamp(2, len(levels) + 1) - 2
    pooled = levels[0].new_zeros((len(rois), levels[0].shape[1], size, size))
    for k, features in enumerate(levels):
        chosen = (level == k).nonzero()[:, 0]
        part = roi_align(features, rois[chosen], size, spatial_scale=0.25 / 2**k, sampling_ratio=0, aligned=True)
        pooled = pooled.index_put((chosen,), part)
    return pooled


class BoxStage(nn.Module):
    """Two fully connected layers over a pooled box, then classes (the background last) and box offsets."""

    def __init__(self, channels: int, units: int, num_classes: int, *, one_box: bool, size: int = 7) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels * size * size, units)
        self.fc2 = nn.Linear(units, units)
        self.cls_score = nn.Linear(units, num_classes + 1)
        self.bbox_pred = nn.Linear(units, 4 if one_box else 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        set_bias(self.cls_score)
        set_bias(self.bbox_pred)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, C + 1) logits and (N, 4) or (N, 4 C) offsets."""
        hidden = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        return self.cls_score(hidden), self.bbox_pred(hidden)


class MaskHead(nn.Module):
    """Four 3x3 convolutions, one upsampling, one mask for each class (He et al., 2017, figure 4)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)])
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.convs, self.deconv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            set_bias(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        set_bias(self.predictor)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, C, M, M) logits."""
        return self.logits(self.features(pooled))

    def features(self, pooled: Tensor) -> Tensor:
        """Return what the convolutions make of pooled boxes."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        return pooled

    def logits(self, features: Tensor) -> Tensor:
        """Return the masks of such features."""
        logits: Tensor = self.predictor(F.relu(self.deconv(features)))
        return logits


def choose_detections(
    boxes: Tensor,
    scores_NC: Tensor,
    size_yx: tuple[int, int],
    *,
    min_score: float,
    nms_iou: float,
    detections: int,
) -> dict[str, Tensor]:
    """Return one image's best detections after suppression within each class.

    Args:
        boxes: (N, 4), or (N, C, 4) with a box for each class.
        scores_NC: of the classes, without the background.
        size_yx: boxes end there.
        min_score: exclusive.
        nms_iou: of two boxes of one class above it, the lesser goes.
        detections: at most.

    Returns:
        boxes (D, 4), labels (D,) from 0 and scores (D,), best first.
    """
    row, label = (scores_NC > min_score).nonzero(as_tuple=True)
    chosen = clip_boxes_to_image(boxes[row] if boxes.ndim == 2 else boxes[row, label], size_yx)
    scores = scores_NC[row, label]
    keep = batched_nms(chosen, scores, label, nms_iou)[:detections]
    return {"boxes": chosen[keep], "labels": label[keep], "scores": scores[keep]}


def match_boxes(boxes: Tensor, target: Target, iou: float, background: int) -> tuple[Tensor, Tensor]:
    """Return each box's object (index) and class: of what it overlaps most, or the background below `iou`."""
    if not len(target["boxes"]):
        zeros = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return zeros, torch.full_like(zeros, background)
    index = Matcher(iou, iou)(box_iou(target["boxes"].to(boxes), boxes))
    labels = target["labels"][index.clamp(min=0)].clone()
    labels[index < 0] = background
    return index.clamp(min=0), labels


def sample_proposals(boxes: Tensor, target: Target, *, count: int, iou: float, background: int) -> Tensor:
    """Return proposals to train on: the objects' own boxes are added, a quarter at most lies on objects."""
    together = torch.cat([boxes, target["boxes"].to(boxes)])
    labels = match_boxes(together, target, iou, background)[1]
    sampler = BalancedPositiveNegativeSampler(count, 0.25)
    positive, negative = sampler([(labels != background).long()])
    return together[(positive[0] | negative[0]).bool()]


def box_losses(
    logits: Tensor,
    offsets: Tensor,
    boxes: Sequence[Tensor],
    matches: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Target],
    *,
    coder: BoxCoder,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Return a stage's class and box loss, each a mean over all boxes.

    Args:
        logits: (N, C + 1) of all boxes of all images.
        offsets: (N, 4), or (N, 4 C) with a box for each class.
        boxes: of each image.
        matches: of each image, see `match_boxes`.
        targets: of each image.
        coder: boxes to offsets.
        beta: where the smooth L1 loss turns linear; 0 for L1.
    """
    labels = torch.cat([label for _, label in matches])
    on_object = labels < logits.shape[1] - 1
    objects = torch.cat(
        [
            target["boxes"].to(some)[index] if len(target["boxes"]) else torch.zeros_like(some)
            for (index, _), some, target in zip(matches, boxes, targets, strict=True)
        ]
    )
    wanted = coder.encode_single(objects[on_object], torch.cat(list(boxes))[on_object])
    chosen = offsets.reshape(len(labels), -1, 4)[on_object]
    if chosen.shape[1] > 1:
        chosen = chosen[torch.arange(len(chosen), device=labels.device), labels[on_object]]
    moved = F.smooth_l1_loss(chosen.reshape(-1, 4), wanted, beta=beta, reduction="sum") / max(1, len(labels))
    return F.cross_entropy(logits, labels), moved


def mask_targets(target: Target, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Return (N, size, size) in 0 and 1: the masks of the boxes' objects, seen through the boxes."""
    rois = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    masks = target["masks"][:, None].to(boxes)
    seen: Tensor = roi_align(masks, rois, size, spatial_scale=1.0, sampling_ratio=0, aligned=True)[:, 0]
    return (seen >= 0.5).to(boxes.dtype)


def mask_loss(logits: Tensor, boxes: Sequence[Tensor], targets: Sequence[Target], iou: float) -> Tensor:
    """Return the mean binary cross-entropy of the masks of the boxes' own classes.

    Args:
        logits: (sum of N, C, M, M) for all boxes of all images; all boxes lie on objects.
        boxes: (N, 4) of each image.
        targets: of each image, labels from 0.
        iou: by which the boxes were matched.
    """
    num_classes, size = logits.shape[1], logits.shape[-1]
    wanted, labels = [], []
    for some, target in zip(boxes, targets, strict=True):
        if len(some):
            index, label = match_boxes(some, target, iou, num_classes)
            wanted.append(mask_targets(target, some, index, size))
            labels.append(label)
    if not wanted:
        return logits.sum() * 0
    rows = torch.arange(len(logits), device=logits.device)
    return F.binary_cross_entropy_with_logits(logits[rows, torch.cat(labels)], torch.cat(wanted))
