"""The bundled nuclei model: a compact Mask R-CNN over the first three stages of a ResNet-18."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from segworker.models.common.input import InputRule
from segworker.models.common.options import parse_options
from segworker.models.common.two_stage import TwoStage
from segworker.models.maskrcnn.config import MaskRCNNConfig
from segworker.models.nuclei.config import CATEGORIES, CONFIG, SPEC, NucleiOptions
from segworker.types import Category


class _NoExtraLevel(ExtraFPNBlock):
    """Keeps the pyramid at the levels of the backbone (the default adds one of twice the stride)."""

    def forward(
        self,
        results: list[torch.Tensor],
        x: list[torch.Tensor],  # noqa: ARG002  # torchvision's interface
        names: list[str],
    ) -> tuple[list[torch.Tensor], list[str]]:
        return results, names


def build_nuclei(**options: object) -> TwoStage:
    """Return the network with random weights (seed torch first for the same ones).

    Args:
        options: fields of `NucleiOptions`.
    """
    chosen = parse_options(NucleiOptions, options)
    sizes = replace(CONFIG, detections=chosen.detections, score_threshold=chosen.score_threshold)
    categories = tuple(Category(k, name) for k, name in enumerate(chosen.class_names, start=1))
    return build_compact(replace(sizes, num_classes=len(categories) + 1), categories)


def build_compact(config: MaskRCNNConfig, categories: tuple[Category, ...] = CATEGORIES) -> TwoStage:
    """Return a network of the given sizes and classes."""
    return TwoStage(
        build_backbone(config),
        build_rpn(config),
        build_roi_heads(config),
        categories=categories,
        spec=SPEC,
        rule=InputRule(config.image_mean, config.image_std),
    )


def build_backbone(config: MaskRCNNConfig) -> nn.Module:
    """Return ResNet-18 without its last stage, with a feature pyramid on top."""
    layers = {f"layer{stage}": str(level) for level, stage in enumerate(config.body_stages)}
    channels = [64 * 2 ** (stage - 1) for stage in config.body_stages]
    body, top = resnet18(weights=None), _NoExtraLevel()
    pyramid: nn.Module = BackboneWithFPN(body, layers, channels, config.fpn_channels, top, norm_layer=nn.BatchNorm2d)
    return pyramid


def build_rpn(config: MaskRCNNConfig) -> RegionProposalNetwork:
    """Return the proposal network, with enough proposals for dense tiles."""
    ratios = (config.anchor_ratios,) * len(config.anchor_sizes_px)
    anchors = AnchorGenerator(config.anchor_sizes_px, ratios)
    return RegionProposalNetwork(
        anchors,
        RPNHead(config.fpn_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=config.rpn_fg_iou,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": config.rpn_top_n_train, "testing": config.rpn_top_n_test},
        post_nms_top_n={"training": config.rpn_top_n_train, "testing": config.rpn_top_n_test},
        nms_thresh=0.7,
    )


def build_roi_heads(config: MaskRCNNConfig) -> RoIHeads:
    """Return light box and mask heads."""
    levels = [str(level) for level in range(len(config.body_stages))]
    pool = {"sampling_ratio": 1, "canonical_scale": config.roi_canonical_px, "canonical_level": 4}
    channels, units = config.fpn_channels, config.box_head_units
    return RoIHeads(
        box_roi_pool=MultiScaleRoIAlign(levels, 7, **pool),
        box_head=TwoMLPHead(channels * 49, units),
        box_predictor=FastRCNNPredictor(units, config.num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_iou,
        detections_per_img=config.detections,
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, **pool),
        mask_head=MaskRCNNHeads(channels, config.mask_head_layers, dilation=1),
        mask_predictor=MaskRCNNPredictor(config.mask_head_layers[-1], config.mask_head_layers[-1], config.num_classes),
    )
