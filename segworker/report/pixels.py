"""Pixels of scenes as pictures: read through overviews in windows, never more than was asked for."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segworker.grid import Grid
from segworker.io.raster import SceneReader
from segworker.types import InputSpec, Scene, Window

GREY = (90, 90, 90)
"Where a picture has no pixels."
_log = logging.getLogger(__name__)


def grid_of_pictures(scene: Scene, scale: float) -> Grid:
    """Return the grid of one window that pictures of a scene at a scale of at most 1 are read on."""
    return Grid.of_scene(scene, tile_px=2**20, overlap_px=0, scale=min(scale, 1.0))


def read_picture(scene: Scene, window: Window, *, scale: float, max_read_px: int) -> Image.Image | None:
    """Return a window of a scene in red, green and blue, or in grey.

    Args:
        scene: to read.
        window: in grid pixels at `scale`, inside the scene.
        scale: grid pixels per scene pixel, at most 1.
        max_read_px: what may be read for it; None is returned where the file has no overviews inside that would help.

    Raises:
        SegworkerError: where the scene cannot be read.
    """
    bands = (1,) if scene.num_bands == 2 else None  # neither grey nor colour: the first one, as grey
    with SceneReader(scene, scale=scale, bands=bands, spec=InputSpec(num_bands=3)) as reader:
        per_pixel = reader.level.width * reader.level.height / (scene.width * scene.height * scale**2)
        if window.width * window.height * per_pixel > max_read_px:
            _log.warning("%s has no overviews inside (gdaladdo makes them): no pixels in its picture", scene.scene_id)
            return None
        pixels, valid = reader.read_window(window)
    return Image.fromarray(stretched(pixels, valid))


def stretched(pixels: NDArray[np.generic], valid: NDArray[np.bool_], *, always: bool = False) -> NDArray[np.uint8]:
    """Return (H, W, 3) from (3, H, W): bytes as they are (unless `always`), else between 1st and 99th percentile."""
    values = np.moveaxis(pixels.astype(np.float32), 0, -1)
    if (always or pixels.dtype != np.uint8) and valid.any():
        low, high = np.nanpercentile(values[valid], [1, 99])
        values = (values - low) / max(float(high - low), 1e-9) * 255
    values[~valid] = 0
    return np.nan_to_num(np.clip(values, 0, 255)).astype(np.uint8)
