"""From YOLACT's raw heads to a prediction.

N priors, D detections, C classes, K prototypes, h and w cells of the prototypes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from segworker.models.common.crops import crop_masks
from segworker.models.common.nms import fast_nms
from segworker.models.common.two_stage import centre_is_valid
from segworker.models.yolact.config import YolactConfig
from segworker.types import Category, Prediction

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0), bbox_xform_clip=10.0)
"The variances 0.1 and 0.2 of SSD; the published network does not clip, and e^2 is far beyond any prior."


def detect(raw: Mapping[str, Tensor], k: int, config: YolactConfig) -> dict[str, Tensor]:
    """Return one image's detections.

    Args:
        raw: what `Yolact.forward` returns.
        k: which image of the batch.
        config: thresholds.

    Returns:
        boxes (D, 4) in pixels, labels (D,) from 0, scores (D,), coefficients (D, K), best first.
    """
    scores_NC = raw["logits"][k].softmax(1)[:, 1:]
    seen = (scores_NC.amax(1) > config.score_threshold).nonzero()[:, 0]
    boxes = CODER.decode_single(raw["offsets"][k, seen], raw["priors_xyxy"][seen])
    index, labels, scores = fast_nms(
        boxes, scores_NC[seen].T, iou=config.nms_iou, per_class=config.per_class, detections=config.detections
    )
    return {
        "boxes": boxes[index],
        "labels": labels,
        "scores": scores,
        "coefficients": raw["coefficients"][k, seen][index],
    }


def assemble(prototypes_Khw: Tensor, coefficients_DK: Tensor, boxes: Tensor, size_yx: tuple[int, int]) -> Tensor:
    """Return (D, h, w) mask probabilities, 0 outside each box and a margin of one cell around it.

    Args:
        prototypes_Khw: of the image.
        coefficients_DK: of each detection.
        boxes: (D, 4) in pixels.
        size_yx: of the image in pixels.
    """
    _, h, w = prototypes_Khw.shape
    probs = torch.einsum("dk,khw->dhw", coefficients_DK, prototypes_Khw).sigmoid()
    scale = boxes.new_tensor([w / size_yx[1], h / size_yx[0]])
    low = (boxes[:, :2] * scale - 1).clamp(min=0)
    high = torch.minimum(boxes[:, 2:] * scale + 1, boxes.new_tensor([w, h]))
    x, y = torch.arange(w, device=boxes.device), torch.arange(h, device=boxes.device)
    inside_x = (x >= low[:, :1]) & (x < high[:, :1])
    inside_y = (y >= low[:, 1:]) & (y < high[:, 1:])
    return probs * (inside_y[:, :, None] & inside_x[:, None])


def to_prediction(
    raw: Mapping[str, Tensor], k: int, valid_HW: Tensor, config: YolactConfig, categories: Sequence[Category]
) -> Prediction:
    """Return one tile's detections, without those whose centre lies on an invalid pixel."""
    height, width = valid_HW.shape
    found = detect(raw, k, config)
    keep = centre_is_valid(found["boxes"], valid_HW) & (found["scores"] > 0)
    boxes = found["boxes"][keep]
    probs = assemble(raw["prototypes"][k], found["coefficients"][keep], boxes, (height, width))
    ids = np.array([category.id for category in categories], np.int32)
    low, high = boxes.new_tensor([0, 0, 0, 0]), boxes.new_tensor([width, height, width, height])
    return Prediction(
        boxes_xyxy=torch.minimum(torch.maximum(boxes, low), high).cpu().numpy(),
        class_ids=ids[found["labels"][keep].cpu().numpy()],
        scores=found["scores"][keep].cpu().numpy(),
        masks=crop_masks(probs, (height, width)),
    )
