"""From SOLO's raw heads to a prediction: cells with a class, their masks, Matrix NMS.

N candidates, C classes, S grid cells along a side, h and w cells at stride 4, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segworker.models.common.crops import boxes_of_crops, crop_masks
from segworker.models.common.nms import matrix_nms
from segworker.models.common.two_stage import centre_is_valid
from segworker.models.solo.config import STRIDES_PX, SoloConfig
from segworker.models.solo.heads import stretch
from segworker.types import Category, CroppedMasks, Prediction

_MASK_THRESHOLD = 0.5
_CELLS_AT_ONCE = 256
"Masks in memory while candidates are scored."


def points_nms(scores_BCSS: Tensor) -> Tensor:
    """Keep cells that are the best among themselves and the three above and to the left of them."""
    best = F.max_pool2d(scores_BCSS, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores_BCSS * (best == scores_BCSS)


def candidate_masks(raw: Mapping[str, Tensor], image: int, level: int, cells: Tensor) -> Tensor:
    """Return (N, h, w) mask probabilities of some grid cells of a level, at stride 4.

    Args:
        raw: what a head returns.
        image: which image of the batch.
        level: which level.
        cells: (N,) flat indices into the level's grid.
    """
    if "features" in raw:
        kernels = raw[f"kernels_{level}"][image].flatten(1).T[cells]
        return torch.einsum("nk,khw->nhw", kernels, raw["features"][image]).sigmoid()
    size = tuple(side * 2 for side in _finest_size(raw))
    if f"masks_{level}" in raw:
        return _fine(raw[f"masks_{level}"][image, cells], size)
    x, y = raw[f"x_masks_{level}"][image], raw[f"y_masks_{level}"][image]
    return _fine(x, size)[cells % len(x)] * _fine(y, size)[cells // len(x)]


def _finest_size(raw: Mapping[str, Tensor]) -> tuple[int, int]:
    masks = raw["masks_0"] if "masks_0" in raw else raw["x_masks_0"]
    return masks.shape[-2] // 2, masks.shape[-1] // 2


def _fine(logits_Nhw: Tensor, size_yx: tuple[int, ...]) -> Tensor:
    if not len(logits_Nhw):
        return logits_Nhw.new_zeros((0, *size_yx))
    return stretch(logits_Nhw.sigmoid()[None], (size_yx[0], size_yx[1]))[0]


def detect(raw: Mapping[str, Tensor], image: int, config: SoloConfig) -> dict[str, Tensor]:
    """Return one image's objects.

    Args:
        raw: what a head returns.
        image: which image of the batch.
        config: thresholds.

    Returns:
        probs (N, h, w) at stride 4, labels (N,) from 0, scores (N,), best first.
    """
    parts = [_level(raw, image, level, config) for level in range(len(STRIDES_PX))]
    levels, cells, labels, scores = (torch.cat([part[k] for part in parts]) for k in range(4))
    order = scores.sort(descending=True, stable=True).indices[: config.candidates]
    labels, scores = labels[order], scores[order]
    probs = _masks_of(raw, image, levels[order], cells[order])
    scores = matrix_nms(probs > _MASK_THRESHOLD, labels, scores, sigma=config.sigma)
    scores, order = scores.sort(descending=True, stable=True)
    order = order[scores >= config.min_final_score][: config.detections]
    return {"probs": probs[order], "labels": labels[order], "scores": scores[: len(order)]}


def _level(
    raw: Mapping[str, Tensor], image: int, level: int, config: SoloConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a level's candidates: level, cell, label and score, of masks with more pixels than the level's stride."""
    classes = points_nms(raw[f"classes_{level}"][image : image + 1].sigmoid())[0].flatten(1).T
    cell, label = (classes > config.score_threshold).nonzero(as_tuple=True)
    mean, area = classes.new_zeros(len(classes)), classes.new_zeros(len(classes))
    for some in cell.unique().split(_CELLS_AT_ONCE):
        probs = candidate_masks(raw, image, level, some)
        inside = probs > _MASK_THRESHOLD
        area[some] = inside.sum((1, 2)).float()
        mean[some] = (probs * inside).sum((1, 2)) / area[some].clamp(min=1)
    big = area[cell] > STRIDES_PX[level]
    cell, label = cell[big], label[big]
    return torch.full_like(cell, level), cell, label, classes[cell, label] * mean[cell]


def _masks_of(raw: Mapping[str, Tensor], image: int, levels: Tensor, cells: Tensor) -> Tensor:
    """Return (N, h, w) mask probabilities of cells of several levels, in their order."""
    parts = [(levels == level).nonzero()[:, 0] for level in range(len(STRIDES_PX))]
    masks = [candidate_masks(raw, image, level, cells[part]) for level, part in enumerate(parts)]
    return torch.cat(masks)[torch.cat(parts).argsort()]


def to_prediction(
    raw: Mapping[str, Tensor], image: int, valid_HW: Tensor, config: SoloConfig, categories: Sequence[Category]
) -> Prediction:
    """Return one tile's objects, without those whose centre lies on an invalid pixel."""
    found = detect(raw, image, config)
    height, width = valid_HW.shape
    crops = crop_masks(found["probs"], (4 * found["probs"].shape[1], 4 * found["probs"].shape[2]))
    boxes = boxes_of_crops(crops).clip(0, np.array([width, height, width, height], np.float32))
    valid = centre_is_valid(torch.from_numpy(boxes).to(valid_HW.device), valid_HW).cpu().numpy()
    keep = np.flatnonzero(valid & (boxes[:, 2:] > boxes[:, :2]).all(1))
    ids = np.array([category.id for category in categories], np.int32)
    return Prediction(
        boxes_xyxy=boxes[keep],
        class_ids=ids[found["labels"].cpu().numpy()[keep]],
        scores=found["scores"].cpu().numpy()[keep],
        masks=CroppedMasks(tuple(crops.masks[k] for k in keep), crops.corners_xy[keep]),
    )
