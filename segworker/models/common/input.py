"""How a model was shown its images when its published figures were measured.

B images, C bands, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class InputRule:
    """Value scaling and channel order, which always hold, and the paper's resizing, which the pipeline leaves out.

    Tiles are shown at the resolution at which they are read: resizing a 1,024 px window of an orthomosaic to a photo's
    800 px would only lose what there is to see. `paper_size_yx` says what the paper did, so that a tile of
    that size is shown as the paper showed it.
    """

    mean: tuple[float, ...]
    "Of each band, in the order of the bands of the scene (RGB)."
    std: tuple[float, ...]
    "Likewise."
    scale: float = 1.0
    "Images in 0..1 are multiplied by this before the mean is subtracted."
    channels: Literal["rgb", "bgr"] = "rgb"
    "Order in which the network sees the bands."
    resize: Literal["short_side", "stretch", "none"] = "none"
    "'short_side': to `size_px[0]`, the longer one not above `size_px[1]`; 'stretch': to exactly (height, width)."
    size_px: tuple[int, int] = (800, 1333)
    pad_multiple: int = 32
    "The paper's images are padded to multiples of this."

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean and std have one value for each band and std is above 0, got {self}")

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Return what the network sees of images in 0..1 with bands in the scene's order."""
        mean = torch.tensor(self.mean, device=images_BCHW.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images_BCHW.device).view(1, -1, 1, 1)
        normal = (images_BCHW * self.scale - mean) / std
        return normal.flip(1) if self.channels == "bgr" else normal

    def paper_size_yx(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to which the paper resized an image, before padding."""
        if self.resize == "none":
            return height, width
        if self.resize == "stretch":
            return self.size_px
        short, longest = self.size_px
        factor = min(short / min(height, width), longest / max(height, width))
        return round(height * factor), round(width * factor)


IMAGENET_UNIT = InputRule((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize="short_side")
"torchvision's detectors."
IMAGENET_BYTES = InputRule((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), scale=255.0, resize="short_side")
"mmdetection's detectors in 'pytorch' style, and SOLO."
CAFFE_BYTES = InputRule((123.675, 116.28, 103.53), (1.0, 1.0, 1.0), scale=255.0, channels="bgr", resize="short_side")
"detectron2's ResNets: bytes in BGR order, without a deviation."
