"""Second stages in detectron2's layout: one box stage (Mask R-CNN) or several (Cascade), and a mask head.

He et al., 2017, arXiv:1703.06870; Cai and Vasconcelos, 2018, arXiv:1712.00726. Classes are 0 to C - 1, and C is the
background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

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

Sizes = Sequence[tuple[int, int]]
_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


@dataclass(frozen=True, slots=True)
class RoIConfig:
    """Numbers of the second stage."""

    num_classes: int = 80
    "Without the background."
    channels: int = 256
    "Of the pyramid."
    units: int = 1024
    "Of the fully connected layers."
    ious: tuple[float, ...] = (0.5,)
    "For each box stage: from which overlap on a box counts as on an object. Several make a cascade."
    one_box: bool = False
    "One box for all classes instead of one for each; a cascade needs it."
    samples: int = 512
    "Proposals of an image that the losses look at."
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        if len(self.ious) > len(_WEIGHTS) or (len(self.ious) > 1 and not self.one_box):
            raise ValueError(f"a cascade has at most {len(_WEIGHTS)} stages and one box for all classes, got {self}")


class RoIHeads(nn.Module):
    """Box stages and a mask head, with the interface of torchvision's class of this name."""

    def __init__(self, config: RoIConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(
            BoxStage(config.channels, config.units, config.num_classes, one_box=config.one_box) for _ in config.ious
        )
        self.mask_head = MaskHead(config.channels, config.num_classes)
        self.coders = [BoxCoder(weights) for weights in _WEIGHTS[: len(config.ious)]]

    def forward(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_shapes: Sizes,
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections in evaluation mode, losses in training mode.

        Args:
            features: levels of strides 4 to 32; further ones are not looked at.
            proposals: (N, 4) of each image.
            image_shapes: (height, width) of each image, where boxes end.
            targets: `boxes` (N, 4), `labels` (N,) from 0, `masks` (N, H, W); in training.

        Returns:
            For each image boxes, labels from 0, scores, masks (N, 1, M, M) probabilities; named losses.
        """
        levels = list(features.values())[:4]
        if self.training and targets is not None:
            return [], self.losses(levels, proposals, image_shapes, targets)
        return self.detect(levels, proposals, image_shapes), {}

    def detect(self, levels: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sizes) -> list[dict[str, Tensor]]:
        """Return each image's detections; a cascade's scores are the mean of its stages' probabilities."""
        config = self.config
        boxes, probabilities = self._box_stages(levels, list(proposals), sizes)
        counts = [len(some) for some in proposals]
        found = [
            choose_detections(
                some,
                scores[:, :-1],
                size,
                min_score=config.score_threshold,
                nms_iou=config.nms_iou,
                detections=config.detections,
            )
            for some, scores, size in zip(boxes, probabilities.split(counts), sizes, strict=True)
        ]
        labels = torch.cat([one["labels"] for one in found])
        logits = self.mask_head(pool_levels(levels, [one["boxes"] for one in found], 14))
        masks = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()[:, None]
        for one, part in zip(found, masks.split([len(one["labels"]) for one in found]), strict=True):
            one["masks"] = part
        return found

    def _box_stages(self, levels: Sequence[Tensor], boxes: list[Tensor], sizes: Sizes) -> tuple[list[Tensor], Tensor]:
        """Return the last stage's boxes of each image and the mean probabilities of all stages."""
        scores: list[Tensor] = []
        for k, stage in enumerate(self.stages):
            if k:
                boxes = [clip_boxes_to_image(some, size) for some, size in zip(boxes, sizes, strict=True)]
            logits, offsets = stage(pool_levels(levels, boxes, 7))
            boxes = self._moved(k, offsets, boxes)
            scores.append(logits.softmax(1))
        return boxes, torch.stack(scores).mean(0)

    def _moved(self, stage: int, offsets: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Apply a stage's offsets: (N, 4) of each image, or (N, C, 4) with a box for each class."""
        moved = self.coders[stage].decode_single(offsets, torch.cat(list(boxes)))
        shape = (-1, 4) if self.config.one_box else (-1, self.config.num_classes, 4)
        return list(moved.reshape(shape).split([len(some) for some in boxes]))

    def losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sizes, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses of all stages, each of weight 1, and that of the masks on the first stage's samples."""
        config = self.config
        boxes = [
            sample_proposals(
                some.detach(), target, count=config.samples, iou=config.ious[0], background=config.num_classes
            )
            for some, target in zip(proposals, targets, strict=True)
        ]
        result = {"loss_mask": self._mask_loss(levels, boxes, targets)}
        for k, stage in enumerate(self.stages):
            matches = [
                match_boxes(some, target, config.ious[k], config.num_classes)
                for some, target in zip(boxes, targets, strict=True)
            ]
            pooled = _scale_gradient(pool_levels(levels, boxes, 7), 1 / len(self.stages))
            logits, offsets = stage(pooled)
            suffix = f"_{k + 1}" if len(self.stages) > 1 else ""
            result[f"loss_class{suffix}"], result[f"loss_box{suffix}"] = box_losses(
                logits, offsets, boxes, matches, targets, coder=self.coders[k], beta=0.0
            )
            if k + 1 < len(self.stages):
                boxes = [
                    clip_boxes_to_image(some, size)
                    for some, size in zip(self._moved(k, offsets.detach(), boxes), sizes, strict=True)
                ]
                boxes = [some[remove_small_boxes(some, 1e-3)] for some in boxes]
        return result

    def _mask_loss(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        iou, background = self.config.ious[0], self.config.num_classes
        on_objects = [
            some[match_boxes(some, target, iou, background)[1] < background]
            for some, target in zip(boxes, targets, strict=True)
        ]
        return mask_loss(self.mask_head(pool_levels(levels, on_objects, 14)), on_objects, targets, iou)


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    """Return the value, through which gradients pass scaled: the stages of a cascade share the pyramid."""
    return value if factor == 1 else value * factor + value.detach() * (1 - factor)
