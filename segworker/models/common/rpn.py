"""The region proposal network of detectron2's layout: torchvision's, with exact anchors and an L1 loss.

Ren et al., 2015, arXiv:1506.01497. torchvision rounds anchor sides to whole pixels and takes the strides from the ratio
of image and feature sizes, which is wrong at stride 64 where a side is no multiple of it. Its own weights expect that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead


@dataclass(frozen=True, slots=True)
class RPNConfig:
    """Numbers of the proposal network; defaults are those of the papers with a pyramid."""

    channels: int = 256
    anchor_sizes_px: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    "One for each level."
    strides_px: tuple[int, ...] = (4, 8, 16, 32, 64)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    "Height over width."
    nms_iou: float = 0.7
    top_n_train: tuple[int, int] = (2000, 1000)
    "Proposals of a level before, of an image after the suppression."
    top_n_test: tuple[int, int] = (1000, 1000)
    samples: int = 256
    "Anchors of an image that the loss looks at, half of them on objects."


class ExactAnchors(AnchorGenerator):
    """Anchors of exact sides around the first pixel corner of each cell, at stated strides."""

    def __init__(self, sizes_px: Sequence[float], ratios: Sequence[float], strides_px: Sequence[int]) -> None:
        super().__init__(tuple((size,) for size in sizes_px), (tuple(ratios),) * len(sizes_px))
        self.strides_px = tuple(strides_px)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return (A, 4) anchors around zero."""
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (sizes[None] / roots[:, None]).flatten(), (sizes[None] * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, level after level."""
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        sizes = [level.shape[-2:] for level in feature_maps]
        levels = self.grid_anchors(sizes, [(stride, stride) for stride in self.strides_px])
        return [torch.cat(levels)] * len(image_list.image_sizes)


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's network with the box loss of detectron2's recipe (L1), or of any other."""

    beta: float = 0.0
    "Where the smooth L1 loss turns linear."

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the objectness and the box loss, each a mean over the sampled anchors."""
        positive, negative = (torch.cat(part).bool() for part in self.fg_bg_sampler(labels))
        sampled = positive | negative
        wanted = torch.cat(labels)[sampled]
        moves, targets = pred_bbox_deltas[positive], torch.cat(regression_targets)[positive]
        boxes = F.smooth_l1_loss(moves, targets, beta=self.beta, reduction="sum")
        scores = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], wanted)
        return scores, boxes / max(1, len(wanted))


def build_rpn(config: RPNConfig, *, beta: float = 0.0) -> ProposalNetwork:
    """Return the proposal network with random weights; `beta` is where its smooth L1 loss turns linear."""
    anchors = ExactAnchors(config.anchor_sizes_px, config.ratios, config.strides_px)
    (pre_train, post_train), (pre_test, post_test) = config.top_n_train, config.top_n_test
    network = ProposalNetwork(
        anchors,
        RPNHead(config.channels, len(config.ratios)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": pre_train, "testing": pre_test},
        post_nms_top_n={"training": post_train, "testing": post_test},
        nms_thresh=config.nms_iou,
    )
    network.beta = beta
    return network
