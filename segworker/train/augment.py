"""Changes of colour and sharpness that make a network indifferent to how an image was stained and recorded."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def jitter_colours(image_CHW: Tensor, rng: np.random.Generator, *, dark: bool) -> Tensor:
    """Return a changed copy of an image in 0..1, clipped to that range.

    Args:
        image_CHW: RGB.
        rng: all chance comes from it.
        dark: bright objects on a dark ground; a share of these is inverted and tinted, so that they look stained.
    """
    image = _expose(image_CHW, rng, dark=dark)
    if rng.random() < (0.2 if dark else 0.1):
        image = 1 - image
        if dark and rng.random() < 0.7:
            image = _stain(image, rng)
    elif not dark:
        image = _tint(image, rng)
    if rng.random() < 0.1:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    return _degrade(image, rng).clamp(0, 1)


def _expose(image: Tensor, rng: np.random.Generator, *, dark: bool) -> Tensor:
    """Change gamma, contrast and brightness."""
    gamma = float(np.exp(rng.normal(0, 0.25)))
    if dark:
        peak = max(float(image.max()), 0.02)
        gain = float(np.exp(rng.uniform(np.log(0.15), 0))) / peak if rng.random() < 0.5 else rng.uniform(0.7, 1.3)
        return (image * gain).clamp(0, 1) ** gamma + max(0.0, rng.normal(0, 0.02))
    contrast, shift, middle = rng.uniform(0.7, 1.3), rng.normal(0, 0.08), image.mean()
    return (((image - middle) * contrast + middle + shift).clamp(0, 1)) ** gamma


def _tint(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change saturation, and the gain and order of the channels."""
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * rng.uniform(0.3, 1.7)
    image = image * torch.from_numpy(rng.uniform(0.8, 1.2, (3, 1, 1))).float()
    return image[torch.from_numpy(rng.permutation(3))] if rng.random() < 0.3 else image


def _stain(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Colour a bright-ground grey image: darker is more of a random dye, as Beer and Lambert have it."""
    dye = torch.from_numpy(rng.uniform(0.3, 1.6, (3, 1, 1))).float()
    ground = torch.from_numpy(rng.uniform(0.75, 1.0, (3, 1, 1))).float()
    return ground * image.clamp(0.02, 1) ** dye


def _degrade(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Now and then blur, and now and then add noise."""
    if rng.random() < 0.2:
        image = _blur(image, float(rng.uniform(0.4, 1.5)))
    if rng.random() < 0.25:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.005, 0.05)
        image = image + torch.from_numpy(noise)
    return image


def _blur(image: Tensor, sigma: float) -> Tensor:
    steps = torch.arange(-4, 5, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    rows = F.conv2d(F.pad(image[:, None], (4, 4, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 9))
    return F.conv2d(F.pad(rows, (0, 0, 4, 4), mode="replicate"), kernel.view(1, 1, 9, 1))[:, 0]
