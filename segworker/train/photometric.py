"""Changes of colour, sharpness and noise that leave objects where they are, by torchvision.transforms.v2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2


@dataclass(frozen=True, slots=True)
class PhotometricConfig:
    """How strongly images are changed; 0 leaves out."""

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.03
    "Of colour images, in turns of the colour circle."
    blur: float = 0.2
    "Probability."
    noise: float = 0.2
    "Probability."
    grey: float = 0.05
    "Probability of a colour image to lose its colours."


class Photometric:
    """Changes images in 0..1; all chance comes from the seed that each call is given."""

    def __init__(self, config: PhotometricConfig) -> None:
        common = [
            v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], config.blur),
            v2.RandomApply([v2.GaussianNoise(sigma=0.02, clip=True)], config.noise),
        ]
        jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
        self._colour = v2.Compose([jitter, v2.RandomGrayscale(config.grey), *common])
        self._bands = v2.Compose([v2.ColorJitter(config.brightness, config.contrast), *common])

    def __call__(self, image_CHW: Tensor, seed: int) -> Tensor:
        """Return a changed copy; images of other than three bands are not taken for colours."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if len(image_CHW) == 3:
                changed: Tensor = self._colour(image_CHW)
            else:
                changed = self._bands(image_CHW[:, None])[:, 0]
        return changed.clamp(0, 1)
