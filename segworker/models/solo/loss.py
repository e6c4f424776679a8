"""The training losses of SOLO: focal loss over all grid cells, Dice over the masks of those that stand for an object.

N cells that stand for an object, C classes, S grid cells along a side, h and w cells at which masks are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from segworker.models.common.dense_model import Target
from segworker.models.solo.config import (
    CENTRE,
    DICE_WEIGHT,
    FOCAL_WEIGHT,
    MIN_TARGET_PX,
    SCALE_RANGES_PX,
    SoloConfig,
)


@dataclass(frozen=True, slots=True, eq=False)
class LevelTarget:
    """What one image teaches one level."""

    classes_SS: Tensor
    "int64; the number of classes where there is no object."
    cells: Tensor
    "(N,) flat indices of cells that stand for an object."
    objects: Tensor
    "(N,) index of that object."


def solo_losses(raw: Mapping[str, Tensor], targets: Sequence[Target], config: SoloConfig) -> dict[str, Tensor]:
    """Return the two losses of a batch.

    Args:
        raw: what a head returns.
        targets: of each image `boxes`, `labels` from 0, `masks` (n, H, W).
        config: grids and classes.
    """
    logits, wanted, dice = [], [], []
    for image, target in enumerate(targets):
        for level, grid in enumerate(config.grids):
            taught = level_target(target, level, grid, config.num_classes)
            logits.append(raw[f"classes_{level}"][image].flatten(1).T)
            wanted.append(taught.classes_SS.flatten())
            if len(taught.cells):
                probs = _mask_probs(raw, image, level, taught.cells)
                dice.append(dice_loss(probs, _shrunk(target["masks"], probs.shape[-2:])[taught.objects]))
    labels = torch.cat(wanted)
    num_objects = int((labels < config.num_classes).sum())
    hot = F.one_hot(labels, config.num_classes + 1)[:, :-1].float()
    focal = sigmoid_focal_loss(torch.cat(logits), hot, alpha=0.25, gamma=2, reduction="sum")
    unused = sum(values.sum() for name, values in raw.items() if not name.startswith("classes")) * 0
    return {
        "loss_class": FOCAL_WEIGHT * focal / (num_objects + 1),
        "loss_mask": DICE_WEIGHT * torch.cat(dice).mean() + unused if dice else unused,
    }


def dice_loss(probs_Nhw: Tensor, masks_Nhw: Tensor) -> Tensor:
    """Return (N,) one minus twice the overlap over the sum of squares."""
    probs, masks = probs_Nhw.flatten(1), masks_Nhw.flatten(1)
    return 1 - 2 * (probs * masks).sum(1) / (probs.square().sum(1) + masks.square().sum(1) + 0.002)


def level_target(target: Target, level: int, grid: int, num_classes: int) -> LevelTarget:
    """Return which cells of a level stand for which object: those around the centre of mass of objects of its size."""
    device = target["boxes"].device
    classes = torch.full((grid, grid), num_classes, dtype=torch.int64, device=device)
    owner = torch.full((grid, grid), -1, dtype=torch.int64, device=device)
    low, high = SCALE_RANGES_PX[level]
    for k, (box, mask) in enumerate(zip(target["boxes"].tolist(), target["masks"], strict=True)):
        size = max(0.0, (box[2] - box[0]) * (box[3] - box[1])) ** 0.5
        if low <= size <= high and int(mask.sum()) >= MIN_TARGET_PX:
            rows, cols = _centre_cells(mask, box, grid)
            classes[rows, cols] = target["labels"][k]
            owner[rows, cols] = k
    cells = (owner.flatten() >= 0).nonzero()[:, 0]
    return LevelTarget(classes, cells, owner.flatten()[cells])


def _centre_cells(mask_HW: Tensor, box: Sequence[float], grid: int) -> tuple[slice, slice]:
    """Return the rows and columns of the grid that the middle of an object covers, at most one around its centre."""
    ranges = []
    for axis, (size, side) in enumerate(zip(mask_HW.shape, (box[3] - box[1], box[2] - box[0]), strict=True)):
        places = mask_HW.nonzero()[:, axis].float()
        centre = float(places.mean()) + 0.5
        half = 0.5 * CENTRE * side
        cell = min(grid - 1, int(centre / size * grid))
        first = max(0, cell - 1, int((centre - half) / size * grid))
        last = min(grid - 1, cell + 1, int((centre + half) / size * grid))
        ranges.append(slice(first, last + 1))
    return ranges[0], ranges[1]


def _mask_probs(raw: Mapping[str, Tensor], image: int, level: int, cells: Tensor) -> Tensor:
    """Return (N, h, w) probabilities at the resolution of the level's own maps."""
    if "features" in raw:
        kernels = raw[f"kernels_{level}"][image].flatten(1).T[cells]
        return torch.einsum("nk,khw->nhw", kernels, raw["features"][image]).sigmoid()
    if f"masks_{level}" in raw:
        return raw[f"masks_{level}"][image, cells].sigmoid()
    x, y = raw[f"x_masks_{level}"][image].sigmoid(), raw[f"y_masks_{level}"][image].sigmoid()
    return x[cells % len(x)] * y[cells // len(x)]


def _shrunk(masks_NHW: Tensor, size_yx: Sequence[int]) -> Tensor:
    small = F.interpolate(masks_NHW[None].float(), tuple(size_yx), mode="bilinear", align_corners=False)[0]
    return (small >= 0.5).float()
