"""What the laws draw from: grids, masks, and scenes of whole objects."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from segworker.grid import Axis, Grid
from segworker.types import Window

EIGHT = np.ones((3, 3), int)
"scipy's structure for 8-connectivity."

seeds = st.integers(0, 2**32 - 1)
"For what is drawn by numpy: large arrays, which hypothesis would draw one by one."


@st.composite
def axes(draw, *, max_size: int = 300, max_tile: int = 64) -> Axis:
    """Axes with every overlap and shift that is allowed."""
    tile = draw(st.integers(1, max_tile))
    overlap = draw(st.integers(0, tile - 1))
    return Axis(draw(st.integers(1, max_size)), tile, overlap, draw(st.integers(0, tile - overlap - 1)))


@st.composite
def grids(draw, *, max_side: int = 60, max_tile: int = 24) -> Grid:
    """Small grids with every overlap that is allowed."""
    tile = draw(st.integers(1, max_tile))
    overlap = draw(st.integers(0, tile - 1))
    width, height = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    return Grid("s", width, height, tile, overlap, is_shifted=draw(st.booleans()))


@st.composite
def tilings(draw, shape_yx: tuple[int, int], *, min_tile: int = 16, max_tile: int = 96) -> Grid:
    """Grids over a scene of a given shape whose tiles overlap by a pixel at least."""
    tile = draw(st.integers(min_tile, max_tile))
    overlap = draw(st.integers(1, tile // 2))
    return Grid("s", shape_yx[1], shape_yx[0], tile, overlap, is_shifted=draw(st.booleans()))


@st.composite
def windows(draw, *, max_off: int = 20, max_side: int = 20) -> Window:
    """Windows, empty ones too."""
    return Window(*(draw(st.integers(0, limit)) for limit in (max_off, max_off, max_side, max_side)))


def binary_masks(*, max_side: int = 12):
    """Boolean images in which every small configuration of pixels occurs, empty and full ones too."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=max_side)
    return hnp.arrays(np.bool_, shapes)


def label_images(*, max_side: int = 12, max_label: int = 5):
    """Label images whose labels may be missing or in several parts."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=max_side)
    return hnp.arrays(np.int32, shapes, elements=st.integers(0, max_label))


def mask_lists(*, max_masks: int = 6, side: int = 9):
    """A few masks of one shape that may overlap, (N, H, W)."""
    return st.integers(0, max_masks).flatmap(lambda n: hnp.arrays(np.bool_, (n, side, side)))


@st.composite
def blobs(draw, *, max_side: int = 130) -> np.ndarray:
    """Label images of 8-connected objects: specks, blobs, snakes and rings, from a pixel to the whole scene."""
    height, width = draw(_sides(max_side)), draw(_sides(max_side))
    sigma, level = draw(st.floats(0.6, 10)), draw(st.floats(-0.6, 0.6))
    noise = ndimage.gaussian_filter(np.random.default_rng(draw(seeds)).normal(size=(height, width)), sigma)
    return ndimage.label(noise > level * noise.std(), EIGHT)[0].astype(np.int32)


@st.composite
def partitions(draw, *, max_side: int = 110, max_fields: int = 14) -> np.ndarray:
    """Label images without background: each object shares its borders with its neighbours."""
    rng = np.random.default_rng(draw(seeds))
    height, width, count = draw(_sides(max_side)), draw(_sides(max_side)), draw(st.integers(1, max_fields))
    ys, xs = np.mgrid[0:height, 0:width]
    places = rng.uniform(0, 1, (count, 2)) * (height, width)
    nearest = np.argmin([np.hypot(ys - y, xs - x) for y, x in places], axis=0)
    return components_of(nearest + 1)


def _sides(limit: int):
    """Sides of scenes: as often large as any."""
    return st.one_of(st.integers(1, limit), st.integers(limit * 2 // 3, limit))


def components_of(labels_HW: np.ndarray) -> np.ndarray:
    """Number the 8-connected components of equal labels from 1."""
    result = np.zeros(labels_HW.shape, np.int32)
    for value in np.unique(labels_HW[labels_HW > 0]):
        found, _ = ndimage.label(labels_HW == value, EIGHT)
        result[found > 0] = found[found > 0] + result.max()
    return result
