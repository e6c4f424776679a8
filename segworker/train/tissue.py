"""Counter-stained tissue painted from label rasters: pale or dark nuclei in a coloured, fibrous surrounding.

Stained images are rare in public nuclei data, and immunohistochemistry, where nuclei can be paler than what surrounds
them, is missing altogether. Shapes and their crowding come from real annotated nuclei; colours and texture are drawn.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_GROUNDS = ((0.50, 0.33, 0.20), (0.66, 0.47, 0.33), (0.80, 0.66, 0.55), (0.85, 0.60, 0.72), (0.72, 0.55, 0.70))
"Brown, tan and pink stains of what surrounds the nuclei (RGB)."
_GLASS = ((0.90, 0.89, 0.88), (0.84, 0.79, 0.76), (0.78, 0.70, 0.62))
"What shows between: glass, and pale tissue."
_NUCLEI = ((0.62, 0.64, 0.74), (0.50, 0.54, 0.68), (0.38, 0.38, 0.60), (0.33, 0.24, 0.48), (0.55, 0.55, 0.60))
"Blue to violet, pale to dark."


def paint_tissue(image_CHW: Tensor, labels_HW: Tensor, rng: np.random.Generator) -> Tensor:
    """Return an image of tissue with nuclei where the labels are; (3, H, W) in 0..1.

    Args:
        image_CHW: a fluorescence image: its brightness becomes the nuclei's own texture.
        labels_HW: 0 is background.
        rng: all chance comes from it.
    """
    cover = _cover(labels_HW, rng)
    ground = _surrounding(tuple(labels_HW.shape), rng)
    nuclei = _colour(_NUCLEI, rng) * _inner_texture(image_CHW, labels_HW, rng)
    return (ground * (1 - cover) + nuclei * cover).clamp(0, 1)


def _surrounding(shape_yx: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Mix two colours by fibrous noise, and shade the result with fine noise."""
    coarse = _noise(shape_yx, rng, cells=int(rng.integers(2, 7)), stretch=1.0)
    fibres = _noise(shape_yx, rng, cells=int(rng.integers(8, 28)), stretch=float(np.exp(rng.normal(0, 0.8))))
    fine = _noise(shape_yx, rng, cells=96, stretch=1.0)
    amount = torch.sigmoid(
        (coarse * rng.uniform(0.5, 2.0) + fibres * rng.uniform(0.3, 1.5) + rng.normal(0.5, 1.0)) * 1.5
    )
    mixed = _colour(_GROUNDS, rng) * amount + _colour(_GLASS, rng) * (1 - amount)
    return mixed * (1 + 0.12 * rng.random() * fibres + 0.08 * rng.random() * fine)


def _inner_texture(image: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
    grey = image.mean(0)
    inside = grey[labels > 0]
    middle, spread = (inside.mean(), inside.std() + 1e-3) if len(inside) > 1 else (grey.mean(), torch.tensor(1.0))
    wave = ((grey - middle) / spread).clamp(-2, 2)
    each = torch.from_numpy(rng.normal(1.0, 0.08, int(labels.max()) + 1)).float()
    return each[labels.long()] * (1 + float(rng.normal(0, 0.06)) * wave)


def _cover(labels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return how much of a nucleus shows at each pixel: soft at the rim, parted from its neighbours, some faint."""
    strength = torch.from_numpy(rng.uniform(rng.uniform(0.45, 0.9), 1.0, int(labels.max()) + 1)).float()
    strength[0] = 0
    cover = strength[labels.long()]
    if rng.random() < 0.8:
        cover = cover * (1 - rng.uniform(0.3, 1.0) * _borders(labels))
    return F.avg_pool2d(cover[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]


def _borders(labels: Tensor) -> Tensor:
    """Return 1 where a pixel's right or lower neighbour is of another instance, both being inside one."""
    edge = torch.zeros(labels.shape)
    for axis in (0, 1):
        other = torch.roll(labels, -1, axis)
        edge = torch.maximum(edge, ((labels != other) & (labels > 0) & (other > 0)).float())
    return edge


def _noise(shape_yx: tuple[int, ...], rng: np.random.Generator, *, cells: int, stretch: float) -> Tensor:
    """Return smooth noise of about unit deviation with `cells` cells a side, more along one axis by `stretch`."""
    rows, cols = max(2, round(cells * stretch)), max(2, round(cells / stretch))
    lattice = torch.from_numpy(rng.standard_normal((1, 1, rows, cols), dtype=np.float32))
    return F.interpolate(lattice, (shape_yx[0], shape_yx[1]), mode="bilinear", align_corners=False)[0, 0] * 1.3


def _colour(palette: tuple[tuple[float, float, float], ...], rng: np.random.Generator) -> Tensor:
    """Draw a colour near one of a palette's, or now and then any colour; (3, 1, 1)."""
    base: NDArray[np.float64] = np.array(palette[rng.integers(len(palette))])
    drawn = rng.uniform(0.15, 0.95, 3) if rng.random() < 0.1 else base + rng.normal(0, 0.05, 3)
    return torch.from_numpy(np.clip(drawn, 0.05, 1.0)).float()[:, None, None]
