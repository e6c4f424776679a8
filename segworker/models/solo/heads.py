"""Heads of the three variants: for each level and grid cell a class, and a mask in one of three forms.

B tiles, C classes, K channels, S grid cells along a side, h and w cells of a level.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segworker.models.common.init import set_bias
from segworker.models.solo.config import SoloConfig


def conv_gn(channels: int, width: int, size: int = 3) -> nn.Sequential:
    """Return a convolution with group norm and ReLU."""
    conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
    nn.init.normal_(conv.weight, std=0.01)
    return nn.Sequential(conv, nn.GroupNorm(32, width), nn.ReLU())


def tower(channels: int, width: int, depth: int) -> nn.Sequential:
    """Return `depth` such convolutions."""
    return nn.Sequential(*(conv_gn(channels if k == 0 else width, width) for k in range(depth)))


def with_coordinates(features: Tensor, axes: str = "xy") -> Tensor:
    """Append a channel for each axis that runs from -1 to 1 over the image."""
    b, _, h, w = features.shape
    x = torch.linspace(-1, 1, w, device=features.device, dtype=features.dtype).expand(b, 1, h, w)
    y = torch.linspace(-1, 1, h, device=features.device, dtype=features.dtype)[:, None].expand(b, 1, h, w)
    return torch.cat([features, *(x if axis == "x" else y for axis in axes)], dim=1)


def stretch(features: Tensor, size_yx: tuple[int, int] | torch.Size) -> Tensor:
    """Resize bilinearly."""
    return F.interpolate(features, tuple(size_yx), mode="bilinear", align_corners=False)


def solo_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Return the five levels, the finest halved and the coarsest stretched to the one before."""
    first, *middle, last = pyramid
    halved = F.interpolate(first, scale_factor=0.5, mode="bilinear", align_corners=False)
    return [halved, *middle, stretch(last, middle[-1].shape[-2:])]


def _class_conv(channels: int, num_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, num_classes, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    set_bias(conv, -4.595)  # a probability of 0.01 (Lin et al., 2017, focal loss)
    return conv


class SoloHead(nn.Module):
    """A map for every grid cell, S x S of them for each level (Wang et al., 2019, arXiv:1912.04488)."""

    def __init__(self, config: SoloConfig) -> None:
        super().__init__()
        self.grids = config.grids
        width = config.head_channels
        self.mask_tower = tower(config.fpn_channels + 2, width, config.head_convs)
        self.class_tower = tower(config.fpn_channels, width, config.head_convs)
        self.masks = nn.ModuleList(nn.Conv2d(width, grid * grid, 1) for grid in config.grids)
        self.classes = _class_conv(width, config.num_classes)

    def forward(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return classes_k (B, C, S, S) and masks_k (B, S S, 2 h, 2 w) logits for every level."""
        found: dict[str, Tensor] = {}
        for k, (level, grid) in enumerate(zip(solo_levels(pyramid), self.grids, strict=True)):
            features = self.mask_tower(with_coordinates(level))
            finer = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            found[f"masks_{k}"] = self.masks[k](finer)
            found[f"classes_{k}"] = self.classes(self.class_tower(stretch(level, (grid, grid))))
        return found


class DecoupledHead(nn.Module):
    """A map for every column and one for every row of the grid; a cell's mask is their product (same paper)."""

    def __init__(self, config: SoloConfig) -> None:
        super().__init__()
        self.grids = config.grids
        width = config.head_channels
        self.x_tower = tower(config.fpn_channels + 1, width, config.head_convs)
        self.y_tower = tower(config.fpn_channels + 1, width, config.head_convs)
        self.class_tower = tower(config.fpn_channels, width, config.head_convs)
        self.x_masks = nn.ModuleList(nn.Conv2d(width, grid, 3, padding=1) for grid in config.grids)
        self.y_masks = nn.ModuleList(nn.Conv2d(width, grid, 3, padding=1) for grid in config.grids)
        self.classes = _class_conv(width, config.num_classes)

    def forward(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return classes_k (B, C, S, S), x_masks_k and y_masks_k (B, S, 2 h, 2 w) logits for every level."""
        found: dict[str, Tensor] = {}
        for k, (level, grid) in enumerate(zip(solo_levels(pyramid), self.grids, strict=True)):
            for axis, branch, last in (("x", self.x_tower, self.x_masks[k]), ("y", self.y_tower, self.y_masks[k])):
                features = branch(with_coordinates(level, axis))
                finer = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
                found[f"{axis}_masks_{k}"] = last(finer)
            found[f"classes_{k}"] = self.classes(self.class_tower(stretch(level, (grid, grid))))
        return found


class SoloV2Head(nn.Module):
    """A kernel for every grid cell, and features that it turns into a mask (Wang et al., 2020, arXiv:2003.10152)."""

    def __init__(self, config: SoloConfig) -> None:
        super().__init__()
        self.grids = config.grids
        channels, width = config.fpn_channels, config.head_channels
        self.kernel_tower = tower(channels + 2, width, config.head_convs)
        self.class_tower = tower(channels, width, config.head_convs)
        self.kernels = nn.Conv2d(width, config.kernel_channels, 3, padding=1)
        self.classes = _class_conv(width, config.num_classes)
        self.features = MaskFeatures(channels, config.kernel_channels)
        nn.init.normal_(self.kernels.weight, std=0.01)

    def forward(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return classes_k (B, C, S, S), kernels_k (B, K, S, S) for every level, and features (B, K, H / 4, W / 4)."""
        found = {"features": self.features(pyramid[:4])}
        for k, (level, grid) in enumerate(zip(solo_levels(pyramid), self.grids, strict=True)):
            cells = stretch(with_coordinates(level), (grid, grid))
            found[f"kernels_{k}"] = self.kernels(self.kernel_tower(cells))
            found[f"classes_{k}"] = self.classes(self.class_tower(cells[:, :-2]))
        return found


class MaskFeatures(nn.Module):
    """Levels of strides 4 to 32 brought to stride 4 and summed; the coarsest knows its coordinates."""

    def __init__(self, channels: int, out: int, width: int = 128) -> None:
        super().__init__()
        inputs = (channels, channels, channels, channels + 2)
        doubling = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.levels = nn.ModuleList([conv_gn(inputs[0], width)])
        for k in range(1, 4):
            steps = [(conv_gn(width if j else inputs[k], width), doubling) for j in range(k)]
            self.levels.append(nn.Sequential(*itertools.chain(*steps)))
        self.last = conv_gn(width, out, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return (B, K, H / 4, W / 4)."""
        inputs = [*levels[:-1], with_coordinates(levels[-1])]
        total = self.levels[0](inputs[0])
        for branch, features in zip(self.levels[1:], inputs[1:], strict=True):
            total = total + branch(features)
        result: Tensor = self.last(total)
        return result
