"""What models that look once over the whole image share: normalising, losses and predictions around raw heads.

B tiles, N objects, H and W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segworker.models.common.input import InputRule
from segworker.types import Category, InputSpec, Prediction

Target = Mapping[str, Tensor]


class DenseModel(nn.Module, ABC):
    """The contract of `segworker.models.protocol.Model`, and trainable; models add `forward` and two methods."""

    def __init__(self, *, categories: Sequence[Category], spec: InputSpec, rule: InputRule) -> None:
        super().__init__()
        self.categories, self.spec, self.rule = tuple(categories), spec, rule

    @abstractmethod
    def losses(self, raw: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the named losses of a batch.

        Args:
            raw: what `forward` returns, in float32.
            targets: as `loss` has them, with `labels` from 0.
        """

    @abstractmethod
    def prediction(self, raw: Mapping[str, Tensor], k: int, valid_HW: Tensor) -> Prediction:
        """Return what is seen in the k-th tile of a batch.

        Args:
            raw: what `forward` returns, in float32.
            k: which tile.
            valid_HW: bool.
        """

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Return the images as the network was trained to see them."""
        return self.rule.normalise(images_BCHW)

    def loss(self, images_BCHW: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the named losses of a batch; their sum is what is minimised.

        Args:
            images_BCHW: in 0..1, sides multiples of the model's stride.
            targets: one for each image: `boxes` (N, 4) float xyxy pixels, `labels` (N,) int64 category ids, `masks`
                (N, H, W) uint8. N may be 0.
        """
        raw = {name: values.float() for name, values in self(self.normalise(images_BCHW)).items()}
        ids = [category.id for category in self.categories]
        placed = []
        for target in targets:
            labels = torch.tensor([ids.index(number) for number in target["labels"].tolist()], dtype=torch.int64)
            placed.append({**target, "labels": labels.to(images_BCHW.device)})
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return self.losses(raw, placed)

    @torch.inference_mode()
    def predict(self, images_BCHW: Tensor, valid_BHW: Tensor) -> list[Prediction]:
        """Return what is seen in each tile; a tile's result does not depend on its batch mates.

        Args:
            images_BCHW: float32 on the model's device, in 0..1, sides multiples of `spec.stride`.
            valid_BHW: bool; invalid pixels are shown to the network as its mean colour.
        """
        normal = self.normalise(images_BCHW).masked_fill(~valid_BHW[:, None], 0.0)
        raw = {name: values.float() for name, values in self(normal).items()}
        with torch.autocast(normal.device.type, enabled=False):
            return [self.prediction(raw, k, valid_HW) for k, valid_HW in enumerate(valid_BHW)]
