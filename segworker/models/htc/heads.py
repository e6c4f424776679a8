"""The second stage of HTC: boxes and masks by turns, masks that know the stage before, and a semantic branch for both.

N boxes, C classes, K channels, M lattice, h and w cells of stride 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, remove_small_boxes, roi_align

from segworker.models.common.roi import (
    BoxStage,
    MaskHead,
    Target,
    box_losses,
    choose_detections,
    mask_loss,
    match_boxes,
    pool_levels,
    sample_proposals,
)
from segworker.models.htc.config import BOX_BETA, DEVIATIONS, IOUS, STAGE_WEIGHTS, HTCConfig
from segworker.models.htc.loss import semantic_loss

Sizes = Sequence[tuple[int, int]]


class SemanticBranch(nn.Module):
    """All five levels brought to stride 8 and summed; classes for training, an embedding for boxes and masks."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.embedding = nn.Conv2d(channels, channels, 1)
        self.logits = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (B, classes, h, w) logits and the (B, K, h, w) embedding of levels with strides 4 to 64."""
        size = tuple(levels[1].shape[-2:])
        total = torch.zeros_like(levels[1])
        for lateral, level in zip(self.lateral, levels, strict=True):
            total = total + F.relu(lateral(F.interpolate(level, size, mode="bilinear", align_corners=True)))
        for conv in self.convs:
            total = F.relu(conv(total))
        return self.logits(total), F.relu(self.embedding(total))


class FlowMaskHead(MaskHead):
    """A mask head that takes up what the head of the stage before made of the same boxes."""

    def __init__(self, channels: int, num_classes: int, *, first: bool) -> None:
        super().__init__(channels, num_classes)
        self.carry = None if first else nn.Conv2d(channels, channels, 1)

    def carried(self, pooled: Tensor, before: Tensor | None) -> Tensor:
        """Return the features of pooled boxes, with those of the stage before added to them."""
        if self.carry is None or before is None:
            return self.features(pooled)
        return self.features(pooled + F.relu(self.carry(before)))


class HTCHeads(nn.Module):
    """The heads, with the interface of torchvision's `RoIHeads`."""

    def __init__(self, config: HTCConfig) -> None:
        super().__init__()
        self.config = config
        channels, count = config.fpn_channels, config.num_classes
        self.semantic = SemanticBranch(channels, config.num_semantic)
        self.stages = nn.ModuleList(BoxStage(channels, config.box_units, count, one_box=True) for _ in IOUS)
        self.mask_heads = nn.ModuleList(FlowMaskHead(channels, count, first=k == 0) for k in range(len(IOUS)))
        self.coders = [BoxCoder(tuple(1 / value for value in some)) for some in DEVIATIONS]

    def forward(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_shapes: Sizes,
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections in evaluation mode, losses in training mode; see `common.roi_heads.RoIHeads`.

        Targets may have `semantic` (H, W), see `loss.semantic_loss`.
        """
        levels = list(features.values())
        logits, embedding = self.semantic(levels)
        if self.training and targets is not None:
            losses = self.losses(levels[:4], embedding, proposals, image_shapes, targets)
            return [], {**losses, "loss_semantic": semantic_loss(logits, targets)}
        return self.detect(levels[:4], embedding, proposals, image_shapes), {}

    def detect(
        self, levels: Sequence[Tensor], embedding: Tensor, proposals: Sequence[Tensor], sizes: Sizes
    ) -> list[dict[str, Tensor]]:
        """Return each image's detections: classes by the stages' mean logits, masks see `HTCConfig.average_masks`."""
        config, boxes, logits = self.config, list(proposals), []
        for k, stage in enumerate(self.stages):
            scores, offsets = stage(self._pooled_boxes(levels, embedding, boxes))
            boxes = self._moved(k, offsets, boxes, sizes)
            logits.append(scores)
        probabilities = torch.stack(logits).mean(0).softmax(1)[:, :-1].split([len(some) for some in boxes])
        found = [
            choose_detections(
                some,
                scores,
                size,
                min_score=config.score_threshold,
                nms_iou=config.nms_iou,
                detections=config.detections,
            )
            for some, scores, size in zip(boxes, probabilities, sizes, strict=True)
        ]
        labels = torch.cat([one["labels"] for one in found])
        masks = self.masks(levels, embedding, [one["boxes"] for one in found], labels)
        for one, part in zip(found, masks.split([len(one["labels"]) for one in found]), strict=True):
            one["masks"] = part
        return found

    def _pooled_boxes(self, levels: Sequence[Tensor], embedding: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return (N, K, 7, 7): the pyramid's features and the semantic branch's."""
        semantic = F.adaptive_avg_pool2d(_pool(embedding, boxes, 14), 7)
        return pool_levels(levels, boxes, 7) + semantic

    def _pooled_masks(self, levels: Sequence[Tensor], embedding: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return (N, K, 14, 14), likewise."""
        return pool_levels(levels, boxes, 14) + _pool(embedding, boxes, 14)

    def masks(self, levels: Sequence[Tensor], embedding: Tensor, boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return (N, 1, M, M) probabilities of the boxes' classes.

        Args:
            levels: strides 4 to 32.
            embedding: of the semantic branch.
            boxes: of each image.
            labels: (N,) of all boxes of all images, from 0.
        """
        pooled = self._pooled_masks(levels, embedding, boxes)
        rows = torch.arange(len(labels), device=labels.device)
        before: Tensor | None = None
        probs = []
        for head in self._flow():
            before = head.carried(pooled, before)
            probs.append(head.logits(before)[rows, labels].sigmoid())
        chosen = probs if self.config.average_masks else probs[-1:]
        return torch.stack(chosen).mean(0)[:, None]

    def _moved(self, stage: int, offsets: Tensor, boxes: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """Apply a stage's offsets and cut the boxes at their images' ends."""
        moved = self.coders[stage].decode_single(offsets, torch.cat(list(boxes)))
        parts = moved.reshape(-1, 4).split([len(some) for some in boxes])
        return [clip_boxes_to_image(some, size) for some, size in zip(parts, sizes, strict=True)]

    def losses(
        self,
        levels: Sequence[Tensor],
        embedding: Tensor,
        proposals: Sequence[Tensor],
        sizes: Sizes,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Return the losses of all stages; each stage's masks are taught on boxes that the stage has moved."""
        result: dict[str, Tensor] = {}
        boxes = [some.detach() for some in proposals]
        for k, (stage, weight) in enumerate(zip(self.stages, STAGE_WEIGHTS, strict=True)):
            boxes = self._sampled(k, boxes, targets)
            matches = [
                match_boxes(some, target, IOUS[k], self.config.num_classes)
                for some, target in zip(boxes, targets, strict=True)
            ]
            logits, offsets = stage(self._pooled_boxes(levels, embedding, boxes))
            scores, places = box_losses(logits, offsets, boxes, matches, targets, coder=self.coders[k], beta=BOX_BETA)
            boxes = self._moved(k, offsets.detach(), boxes, sizes)
            boxes = [some[remove_small_boxes(some, 1e-3)] for some in boxes]
            masks = self._mask_loss(k, levels, embedding, self._sampled(k, boxes, targets), targets)
            result |= {
                f"loss_class_{k + 1}": weight * scores,
                f"loss_box_{k + 1}": weight * places,
                f"loss_mask_{k + 1}": weight * masks,
            }
        return result

    def _sampled(self, stage: int, boxes: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """Return boxes to train a stage on: the objects' own are added, a quarter at most lies on objects."""
        config = self.config
        return [
            sample_proposals(some, target, count=config.samples, iou=IOUS[stage], background=config.num_classes)
            for some, target in zip(boxes, targets, strict=True)
        ]

    def _mask_loss(
        self,
        stage: int,
        levels: Sequence[Tensor],
        embedding: Tensor,
        boxes: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> Tensor:
        background = self.config.num_classes
        on_objects = [
            some[match_boxes(some, target, IOUS[stage], background)[1] < background]
            for some, target in zip(boxes, targets, strict=True)
        ]
        pooled = self._pooled_masks(levels, embedding, on_objects)
        first, *further = self._flow()[: stage + 1]
        last, features = first, first.carried(pooled, None)
        for head in further:
            last, features = head, head.carried(pooled, features)
        return mask_loss(last.logits(features), on_objects, targets, IOUS[stage])

    def _flow(self) -> list[FlowMaskHead]:
        """Return the mask heads, from the first stage's on."""
        return cast("list[FlowMaskHead]", list(self.mask_heads))


def _pool(features: Tensor, boxes: Sequence[Tensor], size: int) -> Tensor:
    """Pool boxes from one map of stride 8, with exact bilinear sampling."""
    pooled: Tensor = roi_align(features, list(boxes), size, spatial_scale=1 / 8, sampling_ratio=0, aligned=True)
    return pooled
