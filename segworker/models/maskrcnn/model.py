"""Mask R-CNN at native resolution (He et al., 2017, arXiv:1703.06870), from torchvision's backbone, RPN and heads.

torchvision's `GeneralizedRCNN` resizes every image to a fixed short side and pastes every mask to image size. Neither
is wanted here: tiles are cut at the ground resolution that the model asks for, and masks travel as 28 x 28
probabilities. So `backbone`, `rpn` and `roi_heads` are called directly; their names, and with them the keys of
a state dict, are torchvision's.

B tiles, C bands, H and W pixels, N objects, M mask lattice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from segworker.models.maskrcnn.decode import to_prediction, valid_size_yx
from segworker.models.maskrcnn.loss import Target, detection_loss
from segworker.types import Category, InputSpec, Prediction


class MaskRCNN(nn.Module):
    """A two-stage detector with a mask head: the contract of `segworker.models.protocol.Model`, and trainable."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        rpn: nn.Module,
        roi_heads: nn.Module,
        *,
        categories: Sequence[Category],
        spec: InputSpec,
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ) -> None:
        """Join the parts.

        Args:
            backbone: images -> {level: features}.
            rpn: torchvision's `RegionProposalNetwork`, or one with its interface.
            roi_heads: torchvision's `RoIHeads` with a mask head; class 0 is the background.
            categories: what the heads' labels mean; `Category.id` is the label.
            spec: what `predict` is to be fed.
            image_mean: one value for each band, in the units of `images_BCHW`.
            image_std: likewise.
        """
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads
        self.categories, self.spec = tuple(categories), spec
        self.register_buffer("image_mean", torch.tensor(image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation that the model was trained with."""
        return (images_BCHW - self.image_mean) / self.image_std

    def loss(self, images_BCHW: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the named losses of a training batch; see `detection_loss`."""
        return detection_loss(self.backbone, self.rpn, self.roi_heads, self.normalise(images_BCHW), targets)

    def detect(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[dict[str, Tensor]]:
        """Return torchvision's dicts (boxes, labels, scores, masks (N, 1, M, M)) in window pixels.

        Boxes end where a tile's valid pixels end on the right and below. Under autocast only the backbone is computed
        in lower precision: scores and boxes stay float32.
        """
        normal = self.normalise(images_BCHW).masked_fill(~valid_BHW[:, None], 0.0)
        sizes = [valid_size_yx(valid_HW) for valid_HW in valid_BHW]
        features = {name: level.float() for name, level in self.backbone(normal).items()}
        with torch.autocast(normal.device.type, enabled=False):
            proposals, _ = self.rpn(ImageList(normal, sizes), features)
            found: list[dict[str, Tensor]] = self.roi_heads(features, proposals, sizes)[0]
        return found

    @torch.inference_mode()
    def predict(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[Prediction]:
        """Return what is seen in each tile; a tile's result does not depend on its batch mates.

        Args:
            images_BCHW: float32 on the model's device, scaled as `spec` says, sides multiples of `spec.stride`.
            valid_BHW: bool; invalid pixels are shown to the network as its mean colour.
        """
        found = self.detect(images_BCHW, valid_BHW)
        return [to_prediction(one, valid_HW) for one, valid_HW in zip(found, valid_BHW, strict=True)]
