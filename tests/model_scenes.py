"""Small seeded images with objects, and targets for every kind of model."""

from __future__ import annotations

import numpy as np
import torch

from segworker.models.registry import ModelEntry
from segworker.types import Category


def scene(
    entry: ModelEntry, categories: tuple[Category, ...], *, seed: int, size: int = 128, objects: int = 2
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(3, H, W) in 0..1 and its target: discs of the first, squares of the last thing class on two-coloured ground."""
    rng = np.random.default_rng(seed)
    things = [c.id for c in categories if c.isthing] or [c.id for c in categories]
    stuff = [c.id for c in categories if not c.isthing] or [0]
    rows, cols = np.mgrid[:size, :size]
    upper = rows < size // 2
    image = np.where(upper, 0.15, 0.3)[None] * np.array([1.0, 0.9, 0.7])[:, None, None]
    semantic = np.where(upper, stuff[0], stuff[-1])
    corners = [(0.08, 0.08), (0.5, 0.5), (0.1, 0.55), (0.55, 0.1)][:objects]
    boxes, labels, masks = [], [], []
    for k, (top, left) in enumerate(corners):
        side = int(size * rng.uniform(0.26, 0.38))
        y, x = int(size * top), int(size * left)
        inside = (rows >= y) & (rows < y + side) & (cols >= x) & (cols < x + side)
        if k % 2 == 0:
            inside &= np.hypot(rows - y - side / 2 + 0.5, cols - x - side / 2 + 0.5) <= side / 2
        image = np.where(inside, np.array([0.9, 0.5, 0.2] if k % 2 else [0.3, 0.7, 0.9])[:, None, None], image)
        semantic = np.where(inside, things[-1] if k % 2 else things[0], semantic)
        boxes.append([x, y, x + side, y + side])
        labels.append(things[-1] if k % 2 else things[0])
        masks.append(inside)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.array(masks, np.uint8).reshape(-1, size, size)),
    }
    if "semantic" in entry.tasks:
        target["semantic"] = torch.from_numpy(semantic)
    if "keypoints" in entry.tasks:
        target["keypoints"] = keypoints(target["boxes"], int(entry.narrow["num_keypoints"]))
    if "dense" in entry.tasks:
        target["depth"] = torch.from_numpy((1 + rows / size).astype(np.float32))
    image = image + rng.normal(0, 0.02, image.shape)
    return torch.from_numpy(np.clip(image, 0, 1).astype(np.float32)), target


def keypoints(boxes: torch.Tensor, count: int) -> torch.Tensor:
    """(N, K, 3): points along each box's diagonal, all visible."""
    share = (torch.arange(count) + 0.5) / count
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * share
    y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * share
    return torch.stack([x, y, torch.full_like(x, 2)], dim=2)
