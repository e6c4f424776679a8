"""Detectors of two stages at native resolution: proposals, then heads on pooled regions.

Ren et al., 2015, arXiv:1506.01497; He et al., 2017, arXiv:1703.06870. torchvision's `GeneralizedRCNN` resizes every
image to a fixed short side and pastes every mask to image size. Neither is wanted here: tiles are cut at the ground
resolution that the model asks for, and masks travel as 28 x 28 probabilities. So `backbone`, `rpn` and `roi_heads` are
called directly; their names, and with them the keys of a state dict, are torchvision's.

B tiles, C bands, H and W pixels, N objects, M mask lattice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from segworker.models.common.input import InputRule
from segworker.types import BoxMasks, Category, InputSpec, Prediction

Target = Mapping[str, Tensor]


class TwoStage(nn.Module):
    """The contract of `segworker.models.protocol.Model`, and trainable: boxes, with masks or keypoints by the heads."""

    def __init__(
        self,
        backbone: nn.Module,
        rpn: nn.Module,
        roi_heads: nn.Module,
        *,
        categories: Sequence[Category],
        spec: InputSpec,
        rule: InputRule,
        labels: Sequence[int] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            backbone: images -> {level: features}.
            rpn: torchvision's `RegionProposalNetwork`, or one with its interface.
            roi_heads: torchvision's `RoIHeads`, or one with its interface.
            categories: the classes.
            spec: what `predict` is to be fed.
            rule: how images are normalised.
            labels: the heads' label of each category; default: its id, the background being 0.
        """
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads
        self.categories, self.spec, self.rule = tuple(categories), spec, rule
        ids = [category.id for category in categories]
        self._label_of = dict(zip(ids, labels or ids, strict=True))
        self._id_of = {label: number for number, label in self._label_of.items()}

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Return the images as the network was trained to see them."""
        return self.rule.normalise(images_BCHW)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the dense part of the network on normalised images: what can be compiled and exported.

        Returns:
            features_<level>, objectness_<level> and offsets_<level> for every level of the pyramid.
        """
        features = self.backbone(images_BCHW)
        objectness, offsets = self.rpn.get_submodule("head")(list(features.values()))
        found = {f"features_{name}": level for name, level in features.items()}
        for name, scores, moves in zip(features, objectness, offsets, strict=True):
            found[f"objectness_{name}"], found[f"offsets_{name}"] = scores, moves
        return found

    def loss(self, images_BCHW: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the named losses of a batch; their sum is what is minimised.

        Args:
            images_BCHW: in 0..1, sides multiples of the model's stride.
            targets: one for each image: `boxes` (N, 4) float xyxy pixels, `labels` (N,) int64 category ids, `masks`
                (N, H, W) uint8 or `keypoints` (N, K, 3) where the heads want them. N may be 0.
        """
        normal = self.normalise(images_BCHW)
        sizes = [(normal.shape[-2], normal.shape[-1])] * len(normal)
        wanted = [self._labelled(target) for target in targets]
        features = self._features(normal)
        with torch.autocast(normal.device.type, enabled=False):
            proposals, rpn_losses = self.rpn(ImageList(normal, sizes), features, wanted)
            _, roi_losses = self.roi_heads(features, proposals, sizes, wanted)
            dense_losses = self.dense_losses(features, targets)
        return {**rpn_losses, **roi_losses, **dense_losses}

    def dense_losses(self, features: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the losses of further heads on the pyramid; here there are none."""
        return {}

    def dense_outputs(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Return what further heads see, by name; here there are none."""
        return {}

    def detect(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[dict[str, Tensor]]:
        """Return torchvision's dicts (boxes, labels, scores, masks (N, 1, M, M), keypoints) in window pixels.

        Boxes end where a tile's valid pixels end on the right and below. Under autocast only the backbone is computed
        in lower precision: scores and boxes stay float32.
        """
        normal = self.normalise(images_BCHW).masked_fill(~valid_BHW[:, None], 0.0)
        sizes = [valid_size_yx(valid_HW) for valid_HW in valid_BHW]
        features = self._features(normal)
        with torch.autocast(normal.device.type, enabled=False):
            proposals, _ = self.rpn(ImageList(normal, sizes), features)
            found: list[dict[str, Tensor]] = self.roi_heads(features, proposals, sizes)[0]
            for name, values in self.dense_outputs(features).items():
                for one, value in zip(found, values, strict=True):
                    one[name] = value
        return found

    @torch.inference_mode()
    def predict(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[Prediction]:
        """Return what is seen in each tile; a tile's result does not depend on its batch mates.

        Args:
            images_BCHW: float32 on the model's device, scaled as `spec` says, sides multiples of `spec.stride`.
            valid_BHW: bool; invalid pixels are shown to the network as its mean colour.
        """
        found = self.detect(images_BCHW, valid_BHW)
        return [self.to_prediction(one, valid_HW) for one, valid_HW in zip(found, valid_BHW, strict=True)]

    def to_prediction(self, found: Mapping[str, Tensor], valid_HW: Tensor) -> Prediction:
        """Return one tile's detections as arrays, without labels that are no category's."""
        return to_prediction(found, valid_HW, self._id_of)

    def _features(self, normal_BCHW: Tensor) -> dict[str, Tensor]:
        return {name: level.float() for name, level in self.backbone(normal_BCHW).items()}

    def _labelled(self, target: Target) -> dict[str, Tensor]:
        """Return a target whose labels are the heads' instead of category ids."""
        ids: list[int] = target["labels"].tolist()
        labels = torch.tensor([self._label_of[k] for k in ids], dtype=torch.int64, device=target["labels"].device)
        return {**target, "labels": labels}


def to_prediction(found: Mapping[str, Tensor], valid_HW: Tensor, id_of: Mapping[int, int]) -> Prediction:
    """Return one tile's detections as arrays, without those whose centre lies on an invalid pixel.

    Args:
        found: boxes (N, 4), labels (N,), scores (N,); where there are any masks (N, 1, M, M) probabilities, keypoints
            (N, K, 3) and keypoints_scores (N, K) logits.
        valid_HW: bool.
        id_of: category id of each label; detections with other labels are left out.
    """
    labels: list[int] = found["labels"].tolist()
    known = torch.tensor([label in id_of for label in labels], dtype=torch.bool, device=valid_HW.device)
    keep = known & centre_is_valid(found["boxes"], valid_HW)
    kept = keep.cpu().numpy()
    return Prediction(
        boxes_xyxy=found["boxes"][keep].float().cpu().numpy(),
        class_ids=np.array([id_of.get(label, 0) for label in labels], np.int32)[kept],
        scores=found["scores"][keep].float().cpu().numpy(),
        masks=BoxMasks(found["masks"][keep, 0].to(torch.float16).cpu().numpy()) if "masks" in found else None,
        keypoints_NK3=_keypoints(found, keep),
    )


def _keypoints(found: Mapping[str, Tensor], keep: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Return x, y and the sigmoid of the heat map's peak; None without keypoints."""
    if "keypoints" not in found:
        return None
    points = found["keypoints"][keep].float().clone()
    points[..., 2] = found["keypoints_scores"][keep].float().sigmoid()
    return np.asarray(points.cpu().numpy(), np.float32)


def centre_is_valid(boxes_xyxy: Tensor, valid_HW: Tensor) -> Tensor:
    """Return (N,) bool: whether the pixel under each box's centre is valid."""
    height, width = valid_HW.shape
    cols = ((boxes_xyxy[:, 0] + boxes_xyxy[:, 2]) / 2).long().clamp(0, width - 1)
    rows = ((boxes_xyxy[:, 1] + boxes_xyxy[:, 3]) / 2).long().clamp(0, height - 1)
    return valid_HW[rows, cols]


def valid_size_yx(valid_HW: Tensor) -> tuple[int, int]:
    """Return how many rows and columns, from the first, reach the last valid pixel; at least one of each."""
    rows, cols = valid_HW.any(1).nonzero(), valid_HW.any(0).nonzero()
    return (int(rows[-1]) + 1 if len(rows) else 1), (int(cols[-1]) + 1 if len(cols) else 1)
